"""GPT-2 in PyTorch as a benchmark peer: what a careful PyTorch user would run on a CPU. No TaperNorm in here.

Do not import torch first: import_torch() restarts the interpreter once with an environment that glibc and
OpenMP only read at process start.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TUNED = {
    # Keep freed activations in the heap: by default glibc returns every large block to the kernel, and each
    # step then pays for its pages again.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "THP_MEM_ALLOC_ENABLE": "1",  # PyTorch: ask for huge pages behind large tensors
    "OMP_PROC_BIND": "true",  # one thread a core, none migrates
}


def mkl_shim():
    """PyPI's PyTorch brings MKL, whose fastest fp32 kernels ask whether the CPU is Intel's. On AMD this
    builds a library that answers yes, to be preloaded: a peer should not be slow for that reason. None
    elsewhere, or without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or "AuthenticAMD" not in cpuinfo("vendor_id"):
        return None
    handle, path = tempfile.mkstemp(suffix=".so")
    os.close(handle)
    source = "int mkl_serv_intel_cpu_true(void) { return 1; }"
    build = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", path]
    subprocess.run(build, input=source, text=True, check=True)
    return path


def import_torch(args):
    """Imports torch under the tuned environment (or as it is, with --stock-env) with args.threads threads."""
    if not args.stock_env and any(os.environ.get(k) != v for k, v in TUNED.items()):
        env = {**os.environ, **TUNED}
        if shim := mkl_shim():
            env |= {"LD_PRELOAD": shim, "PEER_MKL_SHIM": shim}
        os.execve(sys.executable, [sys.executable, *sys.argv], env)
    if shim := os.environ.get("PEER_MKL_SHIM"):  # loaded by now, and not meant for compilers that we start
        os.unlink(shim)
        os.environ.pop("LD_PRELOAD")
    threads = args.threads or len(os.sched_getaffinity(0))  # before OpenMP pins this thread to one core
    import torch
    torch.set_num_threads(threads)
    torch.set_flush_denormal(not args.denormals)
    torch.manual_seed(0)
    return torch


def add_arguments(parser, batch=16):
    for flag, value, text in (("--n-layer", 6, "L"), ("--n-head", 6, "NH"), ("--n-embd", 384, "C"),
                              ("--seq-len", 256, "T"), ("--batch", batch, "B"), ("--vocab", 256, "V")):
        parser.add_argument(flag, type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores of this process")
    parser.add_argument("--norm", choices=("layernorm", "rmsnorm", "none"), default="layernorm",
                        help="none: as if every norm were folded away")
    parser.add_argument("--compile", action="store_true", help="torch.compile, needs a C++ compiler")
    parser.add_argument("--denormals", action="store_true", help="compute with denormal numbers, PyTorch's default; slow")
    parser.add_argument("--stock-env", action="store_true", help="leave the environment as it is")


def cpuinfo(key):
    try:
        with open("/proc/cpuinfo") as f:
            return next((line.split(":", 1)[1].strip() for line in f if line.startswith(key)), "")
    except OSError:
        return ""


def build(torch, args):
    """The model with fresh weights, [out, in] as torch.nn.Linear keeps them; tied head, fused attention."""
    nn, F = torch.nn, torch.nn.functional
    C, NH = args.n_embd, args.n_head

    def norm():
        return {"layernorm": lambda: nn.LayerNorm(C), "rmsnorm": lambda: nn.RMSNorm(C, eps=1e-6),
                "none": nn.Identity}[args.norm]()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = norm(), norm()
            self.c_attn, self.attn_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.c_fc, self.mlp_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x, cache=None, at=0):
            B, T, _ = x.shape
            q, k, v = (t.view(B, T, NH, C // NH).transpose(1, 2)
                       for t in self.c_attn(self.ln_1(x)).split(C, dim=-1))
            if cache is not None:  # [2, B, NH, T_max, hs]
                cache[0, :, :, at:at + T], cache[1, :, :, at:at + T] = k, v
                k, v = cache[0, :, :, :at + T], cache[1, :, :, :at + T]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
            x = x + self.attn_proj(y.transpose(1, 2).reshape(B, T, C))
            return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    class Gpt2(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(args.vocab, C), nn.Embedding(args.seq_len, C)
            self.h = nn.ModuleList(Block() for _ in range(args.n_layer))
            self.ln_f = norm()
            for w in self.parameters():
                if w.dim() == 2:
                    nn.init.normal_(w, std=0.02)

        def forward(self, tokens, targets=None):
            """The loss, or without targets the logits of the last position."""
            x = self.wte(tokens) + self.wpe.weight[:tokens.shape[1]]
            for block in self.h:
                x = block(x)
            if targets is None:
                return F.linear(self.ln_f(x[:, -1]), self.wte.weight)
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, args.vocab), targets.view(-1))

        def decode(self, tokens, caches, at):
            """Logits after tokens [B, 1 or more] at positions at, at + 1, ..; a cache [2, B, NH, T_max, hs]
            per layer."""
            x = self.wte(tokens) + self.wpe.weight[at:at + tokens.shape[1]]
            for block, cache in zip(self.h, caches):
                x = block(x, cache, at)
            return F.linear(self.ln_f(x[:, -1]), self.wte.weight)

    return Gpt2()


def busy_seconds():
    """CPU seconds of the whole machine, stolen ones included, and of this process. Linux."""
    with open("/proc/stat") as f:
        user, nice, system, _, _, irq, softirq, steal = map(int, f.readline().split()[1:9])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def timed(step, warmup, count):
    """Seconds of each of `count` calls after `warmup` calls that are not counted, the CPU seconds of all of
    them, and the share of the cores that others had meanwhile. One busy neighbour can halve an OpenMP
    program: a figure with a share above 0.05 says little, except for the CPU time of one thread."""
    for _ in range(warmup):
        step()
    times = []
    machine, own = busy_seconds()
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    machine, own = (after - before for after, before in zip(busy_seconds(), (machine, own)))
    return times, own, max(0.0, machine - own) / (sum(times) * os.cpu_count())


def places(values):
    """What was measured in each update of a run: that of its first twentieth (without the very first updates), of the
    twentieth at its half and of its last."""
    n, width = len(values), max(1, len(values) // 20)
    return {5: values[width // 4:width], 50: values[n // 2 - width // 2:][:width], 100: values[-width:]}


def blas(torch):
    """The BLAS and oneDNN lines of torch.__config__.show()."""
    keep = [line.strip(" -") for line in torch.__config__.show().splitlines()
            if any(word in line for word in ("Math Kernel", "MKL-DNN", "OpenBLAS", "CPU capability"))]
    return "; ".join(keep)


def report(torch, args, name, timing, **values):
    """One JSON object on one line. timing: the result of timed()."""
    times, cpu, others = timing
    print(json.dumps({
        "peer": f"PyTorch {torch.__version__}", "what": name, **values,
        "median_ms": round(1e3 * statistics.median(times), 3), "min_ms": round(1e3 * min(times), 3),
        "cpu_ms": round(1e3 * cpu / len(times), 3), "n": len(times), "cpu_share_of_others": round(others, 3),
        "L": args.n_layer, "NH": args.n_head, "C": args.n_embd, "T": args.seq_len, "B": args.batch,
        "V": args.vocab, "norm": args.norm, "compile": args.compile, "denormals": args.denormals, "tuned_env": not args.stock_env,
        "mkl_shim": "PEER_MKL_SHIM" in os.environ, "threads": torch.get_num_threads(),
        "cpu": cpuinfo("model name") or platform.machine(), "blas": blas(torch)}), flush=True)
