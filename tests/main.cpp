#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <signal.h>

#include "runtime/floating_point.h"

int main(int argc, char** argv) {
    tapernorm::flush_denormals();  // as the programs do
    signal(SIGHUP, SIG_DFL);       // the programs respect one that is ignored, as it is under nohup
    return doctest::Context(argc, argv).run();
}
