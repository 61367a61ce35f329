// Model and state files in the safetensors format, so that any safetensors reader opens them.
//
//     8 bytes   n, the length of the header, little endian
//     n bytes   JSON: {"__metadata__": {string: string, ...}, "name": {"dtype": "F32", "shape": [2, 3],
//               "data_offsets": [begin, end]}, ...}, padded with spaces
//     the rest  the tensors, row major, little endian; offsets count from here and leave no gap
#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "io/tensor_file.h"

namespace tapernorm {

class SafetensorsFile : public TensorFile {
  public:
    // Maps the file and checks its whole header; no later access can leave the file.
    explicit SafetensorsFile(const std::string& path, FileUse use = FileUse::input);

    // Reads the whole file and fails unless its bytes are those that were written. The file must have a checksum.
    void verify() const;
};

struct TensorOut {
    std::string name;
    Dtype dtype;
    std::vector<size_t> shape;
    const void* data;  // row major, in `dtype`
};

// A file in memory that is complete but for its writing.
class SafetensorsImage {
  public:
    // checksum: adds the metadata "checksum", that of the whole file with its own digits as zeros. `path` is for messages;
    // the tensors' data must outlive the image.
    SafetensorsImage(const std::string& path, const std::map<std::string, std::string>& metadata,
                     std::vector<TensorOut> tensors, bool checksum);
    const std::string& checksum() const { return checksum_; }  // "" without

    // Replaces `path` as a whole, or fails and leaves it as it was. keep: how many versions of the file stay, with the new
    // one (AtomicFile::commit).
    // ready: called when all is on the disk but the new name.
    void write(const std::string& path, size_t keep = 1, const std::function<void()>& ready = {}) const;

  private:
    std::vector<TensorOut> tensors_;
    std::vector<size_t> bytes_;
    std::string header_, checksum_;
};

struct WriteOptions {
    bool checksum = false;
    size_t keep = 1;
    std::function<void()> ready = {};
};

// Both in one. Tensors keep their order; the data section is 64-byte aligned, and so is every tensor whose predecessors all
// have multiples of 64 bytes.
void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                       const std::vector<TensorOut>& tensors, const WriteOptions& options = {});

// Fails where `path` exists and is not a safetensors file that `ours` knows as what this program writes there: a wrong name
// must not cost a user's file. flag: where the name comes from; what: "a folded model".
void check_replaceable(const char* flag, const std::string& path, const char* what,
                       const std::function<bool(const SafetensorsFile&)>& ours);

}  // namespace tapernorm
