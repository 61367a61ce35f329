#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <signal.h>

#include "runtime/floating_point.h"

int main(int argc, char** argv) {
    tapernorm::flush_denormals();  // as the programs do
    // The programs respect one that is ignored, as it is under nohup, or by a shell for what runs in the background.
    for (const int ends : {SIGHUP, SIGINT, SIGQUIT}) signal(ends, SIG_DFL);
    return doctest::Context(argc, argv).run();
}
