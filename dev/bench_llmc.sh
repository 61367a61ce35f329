#!/usr/bin/env bash
# Tokens per second of llm.c's CPU trainer (train_gpt2.c), as a peer of ours.
#
#   dev/bench_llmc.sh PATH_TO_LLM_C [-L 6] [-H 6] [-C 384] [-T 256] [-B 16] [-V 256] [-n STEPS] [-w WARMUP]
#
# The clone is read, never written: its unmodified train_gpt2.c is built in a temporary directory with its
# Makefile's flags. A driver takes the place of its main: random weights and tokens, written in its formats
# and read by its own readers, then its own training step, without validation and sampling. Prints one JSON
# object. Threads: OMP_NUM_THREADS. Compiler: CC (default clang as in llm.c, else gcc).
set -euo pipefail

die() {
    echo "bench_llmc.sh: error: $*" >&2
    exit 1
}

[[ $# -ge 1 && ${1:-} != -* ]] || die "expected the path of a clone of karpathy/llm.c as the first argument"
llmc=$(cd "$1" 2>/dev/null && pwd) || die "$1: no such directory"
shift
[[ -f $llmc/train_gpt2.c ]] || die "$llmc/train_gpt2.c: not found; expected a clone of karpathy/llm.c"

L=6 H=6 C=384 T=256 B=16 V=256 steps=3 warmup=1
while getopts ":L:H:C:T:B:V:n:w:" option; do
    [[ ${OPTARG:-} =~ ^[0-9]+$ ]] || die "options are -L -H -C -T -B -V -n -w, each with a whole number"
    case $option in
        n) steps=$OPTARG ;;
        w) warmup=$OPTARG ;;
        *) printf -v "$option" %s "$OPTARG" ;;
    esac
done
((steps > 0)) || die "-n: expected at least 1 step"
((C % H == 0)) || die "-C $C is not a multiple of -H $H"

CC=${CC:-$(command -v clang || command -v gcc || command -v cc)} || die "no C compiler found; set CC"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/driver.c" <<'C_END'
#define TESTING  // leaves llm.c's main out
#include "train_gpt2.c"

static uint64_t state = 42;

static uint32_t next_random(void) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33);
}

// Uniform with llm.c's standard deviation of 0.02.
static float small_random(void) { return ((float)next_random() / 2147483648.0f - 0.5f) * 0.0693f; }

static void write_checkpoint(const char* path, GPT2Config c) {
    int header[256] = {20240326,     3,           c.max_seq_len, c.vocab_size,
                       c.num_layers, c.num_heads, c.channels,    c.padded_vocab_size};
    FILE* file = fopenCheck(path, "wb");
    fwrite(header, sizeof(int), 256, file);
    size_t sizes[NUM_PARAMETER_TENSORS];
    fill_in_parameter_sizes(sizes, c);
    for (int tensor = 0; tensor < NUM_PARAMETER_TENSORS; tensor++) {
        int is_norm_weight = tensor == 2 || tensor == 8 || tensor == 14;  // ln1w, ln2w, lnfw
        for (size_t i = 0; i < sizes[tensor]; i++) {
            float x = is_norm_weight ? 1.0f : small_random();
            fwrite(&x, sizeof x, 1, file);
        }
    }
    if (fclose(file) != 0) exit(1);
}

static void write_tokens(const char* path, int vocab_size, size_t count) {
    int header[256] = {20240520, 1, (int)count};
    FILE* file = fopenCheck(path, "wb");
    fwrite(header, sizeof(int), 256, file);
    for (size_t i = 0; i < count; i++) {
        uint16_t token = (uint16_t)(next_random() % (uint32_t)vocab_size);
        fwrite(&token, sizeof token, 1, file);
    }
    if (fclose(file) != 0) exit(1);
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int ascending(const void* a, const void* b) {
    return (*(const double*)a > *(const double*)b) - (*(const double*)a < *(const double*)b);
}

static double median(double* x, int n) {
    qsort(x, n, sizeof *x, ascending);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

int main(int argc, char** argv) {
    if (argc != 9) return 2;
    int v[9];
    for (int i = 1; i < 9; i++) v[i] = atoi(argv[i]);
    int L = v[1], NH = v[2], C = v[3], T = v[4], B = v[5], V = v[6], steps = v[7], warmup = v[8];
    GPT2Config config = {.max_seq_len = T, .vocab_size = V, .padded_vocab_size = (V + 127) / 128 * 128,
                         .num_layers = L, .num_heads = NH, .channels = C};
    write_checkpoint("weights.bin", config);
    write_tokens("tokens.bin", V, (size_t)8 * B * T + 1);

    GPT2 model;
    DataLoader loader;
    gpt2_build_from_checkpoint(&model, "weights.bin");
    dataloader_init(&loader, "tokens.bin", B, T, 0, 1, 1);
    double *total = malloc(steps * sizeof *total), *forward = malloc(steps * sizeof *forward);
    double *backward = malloc(steps * sizeof *backward), *update = malloc(steps * sizeof *update);
    for (int step = -warmup; step < steps; step++) {
        double t0 = now_ms();
        dataloader_next_batch(&loader);
        gpt2_forward(&model, loader.inputs, loader.targets, B, T);
        double t1 = now_ms();
        gpt2_zero_grad(&model);
        gpt2_backward(&model);
        double t2 = now_ms();
        gpt2_update(&model, 1e-4f, 0.9f, 0.999f, 1e-8f, 0.0f, step + warmup + 1);
        double t3 = now_ms();
        fprintf(stderr, "step %d: loss %f, %.1f ms\n", step, model.mean_loss, t3 - t0);
        if (step < 0) continue;
        total[step] = t3 - t0, forward[step] = t1 - t0, backward[step] = t2 - t1, update[step] = t3 - t2;
    }
    int threads = 1;
#ifdef OMP
    threads = omp_get_max_threads();
#endif
    double ms = median(total, steps);  // sorts: total[0] is the fastest
    fprintf(stderr, "RESULT {\"peer\": \"llm.c\", \"what\": \"train\", ");
    fprintf(stderr, "\"tokens_per_s\": %.1f, ", 1e3 * B * T / ms);
    fprintf(stderr, "\"median_ms\": %.1f, \"min_ms\": %.1f, ", ms, total[0]);
    fprintf(stderr, "\"forward_ms\": %.1f, ", median(forward, steps));
    fprintf(stderr, "\"backward_ms\": %.1f, ", median(backward, steps));
    fprintf(stderr, "\"update_ms\": %.1f, ", median(update, steps));
    fprintf(stderr, "\"n\": %d, \"L\": %d, \"NH\": %d, \"C\": %d, \"T\": %d, ", steps, L, NH, C, T);
    fprintf(stderr, "\"B\": %d, \"V\": %d, \"threads\": %d}\n", B, V, threads);
    dataloader_free(&loader);
    gpt2_free(&model);
    return 0;
}
C_END

# The flags of llm.c's Makefile for train_gpt2 on Linux.
flags=(-Ofast -Wno-unused-result -Wno-ignored-pragmas -Wno-unknown-attributes -march=native)
omp=()
echo 'int main(void) { return 0; }' >"$work/empty.c"
if "$CC" -fopenmp "$work/empty.c" -o "$work/empty" 2>/dev/null; then omp=(-fopenmp -DOMP -lgomp); fi
"$CC" "${flags[@]}" -I"$llmc" "$work/driver.c" -o "$work/train" "${omp[@]}" -lm
cd "$work"
./train "$L" "$H" "$C" "$T" "$B" "$V" "$steps" "$warmup" 2>log >/dev/null ||
    die "the trainer stopped: $(tail -n 1 log)"
sed -n 's/^RESULT //p' log
