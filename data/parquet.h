// Parquet files, read by Apache Arrow through its Python package: the C++ library is in few distributions, the package is one
// `pip install pyarrow` away.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/documents.h"

namespace tapernorm::prepare {

// Prints one column batch by batch: the number of texts, where each begins and the last ends (int64), the texts. In place of a
// number, -1 and a reason.
inline constexpr const char* kParquetProgram = R"python(
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.path = [folder for folder in sys.path if folder]  # whatever lies in the working directory is no package
path, field = sys.argv[1:]
out = sys.stdout.buffer
def number(n):
    out.write(n.to_bytes(8, sys.byteorder, signed=True))
def give_up(reason):
    number(-1)
    out.write(reason.encode())
    sys.exit()
try:
    import pyarrow, pyarrow.parquet
except ImportError as error:
    give_up("reading Parquet needs Apache Arrow for the python3 on the PATH (%s); pip install pyarrow" % error)
try:
    file = pyarrow.parquet.ParquetFile(path)
    types = pyarrow.types
    kinds = [getattr(types, kind, lambda type: False)
             for kind in ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary")]
    of = {f.name: f.type.value_type if types.is_dictionary(f.type) else f.type for f in file.schema_arrow}
    texts = [name for name, type in of.items() if any(is_kind(type) for is_kind in kinds)]
    if field not in texts:
        give_up("expected a column of texts named %r (--field), found %s; columns of texts: %s" %
                (field, "one of type %s" % of[field] if field in of else "none", ", ".join(map(repr, texts)) or "none"))
    for batch in file.iter_batches(batch_size=64, columns=[field]):
        column = batch.column(0)
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not any(is_kind(column.type) for is_kind in (types.is_string, types.is_large_string, types.is_binary,
                                                            types.is_large_binary)):
            column = column.cast(pyarrow.large_string())  # a view
        column = column.cast(pyarrow.large_binary()).drop_null()  # bytes as they are, UTF-8 or not
        first, count = column.offset, len(column)
        if count == 0:
            continue
        where, data = column.buffers()[1:]
        where = where[8 * first:8 * (first + count + 1)]
        begin, end = (int.from_bytes(where[at:at + 8].to_pybytes(), sys.byteorder) for at in (0, 8 * count))
        number(count)
        out.write(where)
        if end > begin:
            out.write(data[begin:end])
    out.flush()
except BrokenPipeError:  # nobody wants to read on
    os._exit(0)
except MemoryError as error:
    give_up("there is too little memory to read it (%s)" % (str(error).splitlines() or [""])[0])
except (pyarrow.ArrowException, OSError) as error:
    give_up("expected a Parquet file, but Arrow says: " + (str(error).splitlines() or [""])[0])
)python";

// Each text of one column is a document.
class ParquetReader : public DocumentReader {
  public:
    ParquetReader(const std::string& path, const std::string& field)
        : file_(path), source_({"python3", "-c", kParquetProgram, path, field}, in_quotes(path)) {}

    bool next(Passage& passage) override {
        for (;;) {
            file_.check();
            if (at_ + 1 >= begins_.size() && !read_batch()) return false;
            const int64_t size = begins_[at_ + 1] - begins_[at_];
            ++at_;
            if (size < 0 || size > int64_t(kLargestDocument))
                fail("%s: expected at most %zu MiB in a text, found %lld bytes; split it, or give it as plain text",
                     source_.name().c_str(), kLargestDocument >> 20, static_cast<long long>(size));
            passage = {std::string(size_t(size), '\0'), true, source_.name()};
            read(passage.text.data(), size_t(size));
            if (!std::all_of(passage.text.begin(), passage.text.end(), is_space)) return true;
        }
    }

  private:
    // Whether there is another one.
    bool read_batch() {
        int64_t count;
        const size_t got = source_.read(reinterpret_cast<char*>(&count), sizeof count);
        if (got == 0) return false;
        if (got == sizeof count && count < 0)
            fail("%s: %s", source_.name().c_str(), printable(source_.read_all()).c_str());
        if (got < sizeof count || count > 64) broken_off();
        begins_.resize(size_t(count) + 1), at_ = 0;
        read(reinterpret_cast<char*>(begins_.data()), begins_.size() * sizeof begins_[0]);
        return true;
    }
    void read(char* to, size_t bytes) {
        if (source_.read(to, bytes) < bytes) broken_off();
    }
    [[noreturn]] void broken_off() {
        fail("%s: python3 has broken off while it read this file (its own message is above)", source_.name().c_str());
    }

    MappedFile file_;
    ByteSource source_;
    std::vector<int64_t> begins_;  // of the batch's texts, and the end of the last
    size_t at_ = 0;                // the next of them
};

}  // namespace tapernorm::prepare
