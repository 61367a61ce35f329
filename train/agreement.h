// What all ranks of a run must have in common, so that they compute one update: every setting that is not marked as a
// rank's own in the table of flags, and what is in the files.
#pragma once
#include <vector>

#include "train/ranks/ranks.h"
#include "train/start.h"

namespace tapernorm::train {

// Known before any corpus is opened.
std::vector<Fact> common_settings(const Settings& s, const Start& start);

std::vector<Fact> common_data(const Run& run);

}  // namespace tapernorm::train
