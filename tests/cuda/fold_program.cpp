// fold, for the tests of this folder: its names collide with those of the trainer.
#ifdef TN_CUDA
#define TAPERNORM_NO_MAIN
#include "fold.cpp"

void fold_file(const std::string& model, const std::string& folded) {
    const char* arguments[] = {"fold", model.c_str(), folded.c_str()};
    if (run_program(3, const_cast<char**>(arguments)) != 0) fail("fold %s: failed", model.c_str());
}
#endif
