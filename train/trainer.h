// What the files of train/ whose functions read the model's and the trainer's members know of them beforehand.
#pragma once

namespace tapernorm::train {

// Defined in train_gpt.cu.
template <class Device, class Real>
struct Gpt;
template <class Device, class Real>
struct Trainer;

}  // namespace tapernorm::train
