// The files that torch.save writes (PyTorch 1.6 or later), such as pytorch_model.bin: a zip archive whose entries are stored,
// not compressed:
//
//     NAME/data.pkl     a pickle: a dictionary of tensors, each a piece of a storage with a shape and strides
//     NAME/data/KEY     the numbers of a storage, which several tensors may share (a tied head)
//     NAME/byteorder    "little"; older files have none
//
// A pickle is a program that may call whatever Python can call. Nothing of it is run here: the reader knows the calls that make
// a dictionary of tensors, and refuses a file with any other. Checksums of the archive are not compared, as torch.load does not
// either (torch.save may leave them out).
#pragma once
#include <string>

#include "io/tensor_file.h"

namespace tapernorm {

class TorchFile : public TensorFile {
  public:
    // Maps the file and reads the whole pickle; all of it must be dense tensors. Names and sizes are checked, numbers are not read.
    explicit TorchFile(const std::string& path);
};

// By its first bytes: a zip archive, or what torch.save wrote before (which TorchFile refuses, saying what to do).
bool is_torch_file(const std::string& path);

}  // namespace tapernorm
