#include "options.hpp"

namespace bench {

std::string help_text() {
    return R"(fastffn-bench: how fast are fastffn's layers on this machine, and how far from what it could do?

usage: fastffn-bench [--suite NAME] [OPTION]...

It first measures the machine: read bandwidth of each cache level and of DRAM, and the peak arithmetic of each
instruction set. Then it prints one row for every combination of what you ask for.

examples
  fastffn-bench                                         bf16, 768x3072 with gelu, 1 to 1024 tokens
  fastffn-bench --suite quick                           the main formats on one layer, under a minute
  fastffn-bench --shape 4096x11008 --gated --activation silu --format bf16,int8 --tokens 1,1024 --threads 1,all
  fastffn-bench --op linear --shape 4096x4096 --format all --hot --cold --tokens 1
  fastffn-bench --format int8 --isa avx2,best --baseline int8/avx2
  fastffn-bench --op moe --shape 2048x1024 --gated --activation silu --experts 64 --picks 8 --routing uniform,zipf
  fastffn-bench --machine                               only the machine

what to measure (lists are separated by commas; every combination is a row)
  --op LIST             ffn (default), linear, fff, moe, pack, unpack
  --shape LIST          D_MODELxD_FF, default 768x3072; for linear, pack and unpack IN_FEATURESxOUT_FEATURES
  --activation NAME     identity, relu, relu2, gelu (default), gelu_tanh, silu, swiglu_clamped (gated)
  --gated               ffn with a gate: activation(x w_gate) * (x w_up); --no-gated undoes it for a suite
  --experts N, --picks K  moe: experts of that shape, default 8, and how many each token uses, default 2
  --routing LIST        moe: uniform (default); zipf: the expert of rank r as often as 1/r; one: all tokens the same.
                        Each call has other tokens, so experts come from where a stack of their size lies
  --leaf LIST           fff: neurons of a leaf; 0 (default): every node is a neuron. The tree is the smallest with
                        D_FF neurons, its tokens are fresh in every call, its baseline is the dense layer of that width
  --bias                with biases
  --format LIST         f32, f16, bf16 (default), int8, sparse24, ternary, int4; or all. Options: sparse24:values=int8
  --isa LIST            ref, avx2, avx512base, avx512vnni, avx512bf16, amx; avx512: the best of those; best (default):
                        what the library chooses; all: each that this CPU has
  --threads LIST        default 1; all: as many as the library uses by default
  --tokens LIST         rows of x, default 1,16,128,1024
  --x LIST, --y DTYPE   f32, f16 or bf16; by default bf16 for bf16 weights and f32 for others, and y as x
  --hot                 the same weights in every call, so they stay in cache if they fit (default)
  --cold                weights from DRAM, as in a model of many layers: calls take turns on copies that add up to
                        --cold-bytes. With --hot: both
  --cold-bytes SIZE     default 1G
  --huge-pages          ask for huge pages for the weights (default: as NumPy arrays get them, usually not)

what to compare with
  --baseline FORMAT[/ISA]  the same layer in that format (and instruction set), default f32; none: nothing;
                        dense: for sparse24 the dense format of its values
                        The two take turns within one run, so that a slow moment hits both.

suites
  --suite quick         bf16, int8 and f32 on 768x3072, hot, one and all threads; under a minute
  --suite sparse24      2:4 weights, bf16 and int8, beside dense ones on 2048x8192 and 4096x11008; 1 to 512 tokens
  --suite codes         ternary and int4 (activations int8 and bf16) on 4096x4096, 2560x6912 and 4096x11008 beside int8; hot,
                        and cold up to 16 tokens
  --suite default       768x3072 gelu, 2048x8192 and 4096x11008 silu-gated; all formats; 1 to 1024 tokens; hot, and cold
                        up to 16 tokens; one and all threads; takes long
  --suite moe           64 experts of 2048x1024, 8 per token, and 8 of 2048x7168, 2 per token; bf16 and int8; 1 to 2048
                        tokens; one and all threads
  --suite gatefirst     BitNet a4.8's layer of 2560x6912 and 4096x11008, 1 token, 67.5% of the gates zero: gate first, beside
                        the same weights in the dense order and all in panels; hot and cold
  --suite fff           trees: 768x4095 all-node and with leaves of 32, 1 to 16384 tokens, beside the dense layer
  --suite hadamard      transforms of 4096 to 16384 columns beside a memcpy of the same bytes in L2, and what they add to
                        ternary down projections of 1, 16 and 128 tokens; one and all threads (--threads, --seconds, --rounds)
  --smoke               everything once, tiny, in seconds: does it run? The times mean nothing
                        Options after a suite narrow it: --suite default --format int8 --threads 1

on a GPU
  --device cuda[:N]     rows of a CUDA device, timed on it, with a baseline's calls in turns, and what is asked of each.
                        Takes these options alone: --suite quick (default), decode, prefill or all; --shape INxOUT with
                        --format and --tokens: products of those shapes; --only TEXT: rows whose name contains it; --first N: from row N on;
                        --library PATH: a file or folder of libcublasLt or libcusparseLt, to hold rows against (else where the
                        system finds them); --seconds, --rounds, --json, --list, --smoke

how long
  --seconds TIME        for each row and again for its baseline, default 0.6; slow calls take longer
  --rounds N            turns they take within that time, default 7
  --machine-seconds TIME  for each number about the machine, default 0.15

output
  --json FILE           everything, with units in the names; - for standard output instead of the table
  --machine             measure the machine only
  --no-machine          do not measure it; rows then show no roof
  --list                print the rows that would be measured, and stop
  --version, --help

A round in which other programs use more than 0.15 cores is measured again for as long as patience lasts; rows that
never got a quiet moment carry a star. FASTFFN_ISA and OMP_NUM_THREADS work as everywhere in fastffn.
)";
}

}  // namespace bench
