#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "runtime/floating_point.h"

int main(int argc, char** argv) {
    tapernorm::flush_denormals();  // as the programs do
    return doctest::Context(argc, argv).run();
}
