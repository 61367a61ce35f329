// Token and position embedding, and its gradient.
//
//   x_bt   = wte[token_bt] + wpe[t]
//   dwte[token_bt] += dx_bt,  dwpe[t] += dx_bt
#pragma once
#include "ops/leaf.h"

#ifndef LEAF_BUILD

// x [B, T, C] = wte [V, C] at tokens [B, T] + wpe [>= T, C]
template <class Real>
void embedding_forward(Cpu& dev, Real* x, const int* tokens, const Real* wte, const Real* wpe, size_t B, size_t T,
                       size_t C) {
    parallel_ranges(dev, B * T, 64, [&](size_t row, size_t end, int) {
        for (; row < end; row++) {
            const Real *token = wte + size_t(tokens[row]) * C, *position = wpe + row % T * C;
            for (size_t i = 0; i < C; i++) x[row * C + i] = token[i] + position[i];
        }
    });
}

// dwte [V, C] +=, dwpe [>= T, C] +=. Threads share out the channels: no two write the same element, and each adds the
// tokens in the order of the batch, so the result does not depend on the number of threads.
template <class Real>
void embedding_backward(Cpu& dev, Real* dwte, Real* dwpe, const Real* dx, const int* tokens, size_t B, size_t T,
                        size_t C) {
    parallel_ranges(dev, C, 16, [&](size_t first, size_t last, int) {
        for (size_t row = 0; row < B * T; row++) {
            const Real* d = dx + row * C;
            Real *token = dwte + size_t(tokens[row]) * C, *position = dwpe + row % T * C;
            for (size_t i = first; i < last; i++) token[i] += d[i], position[i] += d[i];
        }
    });
}

#endif
