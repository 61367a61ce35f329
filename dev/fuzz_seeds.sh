#!/usr/bin/env bash
# Valid inputs for the fuzz targets to start from, as small as they can be: dev/fuzz_seeds.sh FOLDER
# Run from the project's folder, its programs built: here or in the folder TAPERNORM_BIN.
set -euo pipefail
seeds=$1
bin=${TAPERNORM_BIN:-.}
[ "$seeds/done" -nt "$0" ] && exit 0
mkdir -p "$seeds"/{safetensors,model,foreign_model,state,tokens,tokenizer,run_log,options,settings_file,instruction_sets,hellaswag,prompts,torch_file}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for i in 1 2 3 4 5 6 7 8 9; do echo "The cat number $i sat on the mat and saw $((7 * i)) birds."; done > "$work/corpus.txt"

# A safetensors file without its first 8 bytes, its header without padding and ended by 0xff (tests/fuzz/fuzz.h).
seed() { # seed <file> <seed>
    local length
    length=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    { head -c $((8 + length)) "$1" | tail -c +9 | sed 's/ *$//' | tr -d '\n'; printf '\xff'; tail -c +$((9 + length)) "$1"; } > "$2"
}
without_metadata() { # [CHANGE OF THE HEADER], for sed: the metadata say that it is a model of this program
    LC_ALL=C sed -E 's/"__metadata__":\{("([^"\\]|\\.)*":"([^"\\]|\\.)*",?)*\},?//' | LC_ALL=C sed "${1:-}"
}
train() { # train GATE NORM [FLAG...]: a tiny model and its state
    "$bin/train_gpt" --device cpu --threads 1 -i "$work/corpus.txt" -o "$work/model.bin" -b 1 -x 4 --gate-warmup 1 --gate-end 3 \
        -m 1 -g "$1" --norm "$2" --n-layer 1 --n-embd 2 --n-head 1 -t 4 "${@:3}" > /dev/null
}
train_and_fold() {
    train "$@"
    "$bin/fold" "$work/model.bin" "$work/folded.bin" --threads 1 > /dev/null
}
exported() { # exported MODEL SEED [FLAG...]: a folder for transformers
    rm -rf "$work/hf"
    "$bin/train_gpt" export "$work/$1.bin" "$work/hf" "${@:3}" > /dev/null
    seed "$work/hf/model.safetensors" "$work/weights"
    { tr -d '\n' < "$work/hf/config.json"; printf '\xff'; without_metadata < "$work/weights"; } > "$seeds/foreign_model/exported-$2"
}
for norm in layernorm rmsnorm; do
    train_and_fold taper $norm --bound 0.3
    for kind in model folded; do
        seed "$work/$kind.bin" "$seeds/model/bound-$norm-$kind"
        exported $kind bound-$norm-$kind
    done
    seed "$work/model.state.bin" "$seeds/state/bound-$norm"
    for steps in 1 2; do
        train taper $norm --bound 0.3 --calibration channels+first --gate-warmup 2 --gate-end 6 -x $steps
        seed "$work/model.state.bin" "$seeds/state/channels-$norm-$steps"
    done
    { printf B; cat "$seeds/state/bound-$norm"; } > "$seeds/state/B-bound-$norm"
done
train_and_fold norm layernorm
exported folded own-head # which GPT2LMHeadModel has where lm_head is not wte
for gate in norm taper taper-all; do
    for norm in layernorm rmsnorm; do
        train_and_fold $gate $norm
        for kind in model folded; do
            exported $kind $gate-$norm-$kind --hf-code
            seed "$work/$kind.bin" "$seeds/model/$gate-$norm-$kind"
            cp "$work/$kind.bin" "$seeds/safetensors/$gate-$norm-$kind"
        done
        seed "$work/model.state.bin" "$seeds/state/$gate-$norm"
        for letter in o l c f r s i m n fn; do
            { printf $letter; cat "$seeds/state/$gate-$norm"; } > "$seeds/state/$letter-$gate-$norm"
        done
        seed "$work/model.state.bin" "$seeds/safetensors/$gate-$norm-state"
    done
done
train norm layernorm -o "$work/teacher.bin"
train taper layernorm --init "$work/teacher.bin" --distill 1
seed "$work/model.state.bin" "$seeds/state/taught"
{ printf d; cat "$seeds/state/taught"; } > "$seeds/state/d-taught"
for letter in v k w d g A B E G L N R T W; do
    { printf $letter; cat "$seeds/state/taper-layernorm"; } > "$seeds/state/$letter"
done
# Hugging Face's: without the metadata that make it a model of this program; and some that are not as they should be.
foreign() { # foreign NAME LETTERS [CHANGE OF config.json [CHANGE OF THE HEADER]], for sed
    { printf '%s' "$2"; printf '%s' '{"model_type":"gpt2","n_layer":1,"n_embd":2,"n_head":1,"n_positions":4,"vocab_size":256,' \
        '"activation_function":"gelu_new","layer_norm_epsilon":1e-05,"n_inner":null}' | sed "${3:-}"; printf '\xff'
        without_metadata "${4:-}" < "$seeds/model/norm-layernorm-model"; } > "$seeds/foreign_model/$1"
}
foreign hugging-face ''
foreign masks '' '' 's/"transformer.h.0.ln_1.weight":\([^}]*\)}/&,"transformer.h.0.attn.bias":\1}/'
for letter in a p t v n; do foreign folder-$letter $letter; done
foreign mask '' '' 's/"transformer.h.0.ln_1.weight":/"transformer.h.0.attn.bias":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},&/'
foreign sharded i 's/^/{"weight_map":{"transformer.wte.weight":"one.safetensors"}}\xff/'
foreign empty-index i 's/^/{"weight_map":1}\xff/'
foreign index-of-folders i 's/^/{"weight_map":{"transformer.wte.weight":"..\/one.safetensors"}}\xff/'
for change in '"n_layer":1/"n_layer":99' '"n_embd":2,"n_head":1/"n_embd":3,"n_head":2' gelu_new/relu '"n_inner":null/"n_inner":7' \
    '1e-05/-1' '1e-05/1e12' '{/{"quantization_config":{},' '{/{"tie_word_embeddings":false,' '{/{"scale_attn_weights":7,' '"n_head":1/"n_head":"x"'; do
    foreign "config-$((i += 1))" '' "s/$change/"
done
# A head of its own, and config.json says that there is none, and the other way round.
for kind in own-head taper-all-rmsnorm-folded taper-layernorm-model; do
    for tied in true false; do
        LC_ALL=C sed -E "s/\"tie_word_embeddings\": *[a-z]*/\"tie_word_embeddings\": $tied/" "$seeds/foreign_model/exported-$kind" \
            > "$seeds/foreign_model/exported-$kind-$tied"
    done
done
# A checkpoint of llm.c: 256 int32 (magic, version, T, V, L, heads, C, padded V), then 90 floats. Another version; 2 heads, 3 channels.
for numbers in 3421122 4421122 3421232; do
    { printf '\xc6\xd7\x34\x01'; for n in $(echo $numbers | fold -w 1); do printf "\\x$n\0\0\0"; done
        head -c 992 /dev/zero; head -c 360 /dev/zero; } > "$seeds/foreign_model/llmc-$numbers"
done
cp "$work/model.log.jsonl" "$seeds/run_log/log"
printf '%s\n' '# settings' 'train = "a \"b\" # c"' "gate-mode = 'norm'" 'batch = 0x10' 'lr = 1e-3' 'no-shuffle = true' 'warmup = "5%"' \
    'seed = -3 # x' > "$seeds/settings_file/all"
printf '%s\n' '[table]' 'x = { a = 1, b.c = [1, [2.5]] }' 'd = 2020-01-01T00:00:00Z' 's = """a' 'b"""' > "$seeds/settings_file/toml"
cp "$work/corpus.txt" "$seeds/tokens/text"
seq -s ' ' 1200 > "$seeds/tokens/long" # more than one sample of a fingerprint
# A shard of llm.c: 256 int32 (magic, version, count, zeros), then uint16.
{ printf '\x88\xd8\x34\x01\x01\0\0\0\x40\0\0\0'; head -c 1012 /dev/zero; head -c 128 /dev/zero | tr '\0' '\5'; } > "$seeds/tokens/shard"
./bpe_train "$work/corpus.txt" -o "$work/bpe" --vocab-size 300 > /dev/null
{ cat "$work/bpe/vocab.json"; printf '\xff'; cat "$work/bpe/merges.txt"; printf '\xff'; head -c 60 "$work/corpus.txt"; } \
    > "$seeds/tokenizer/bpe"
"$bin/train_gpt" --device cpu --threads 1 -i "$work/corpus.txt" -o "$work/words.bin" --tokenizer "$work/bpe" -b 1 -x 2 -m 1 -g norm --n-layer 1 \
    --n-embd 2 --n-head 1 -t 4 > /dev/null
seed "$work/words.bin" "$seeds/model/words"
seed "$work/words.state.bin" "$seeds/state/words"
{ printf s; cat "$seeds/state/words"; } > "$seeds/state/s-words"
{ printf i; cat "$seeds/state/words"; } > "$seeds/state/i-words"
long=$(printf 'catsat%.0s' $(seq 60)) # longer than the words that are merged in place
for place in f fo b bg bu bn m mn; do { cat "$seeds/tokenizer/bpe"; printf '%s<|endoftext|>\xff%s' "$long" $place; } > "$seeds/tokenizer/$place"; done
{ printf '{"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"added_tokens":[{"id":0,"content":"!"}],'
    printf '"model":{"type":"BPE","vocab":%s,"merges":[' "$(cat "$work/bpe/vocab.json")"
    sed -n '2,$s/.*/"&"/p' "$work/bpe/merges.txt" | sed 's/\\/\\\\/g' | paste -sd, -; printf ']}}\xff\xffThe cat\xffj'; } > "$seeds/tokenizer/json"
# llm.c's: 256 int32 (magic, version, V, <|endoftext|>), then a length and the bytes of each token: all bytes, two merges.
{ printf '\xc8\xd7\x34\x01\2\0\0\0\x03\1\0\0\2\1\0\0'; head -c 1008 /dev/zero
    for n in $(seq 0 255); do printf '\1'; printf "\\x$(printf %02x "$n")"; done; printf '\2ca\3cat\1x'; } > "$seeds/tokenizer/llmc"
LC_ALL=C sed 's/\x03cat/\x03dog/' "$seeds/tokenizer/llmc" > "$seeds/tokenizer/llmc-unmade"
sed 's/"type":"BPE"/&,"dropout":0.1/' "$seeds/tokenizer/json" > "$seeds/tokenizer/json-dropout"
sed 's/"type":"BPE"/&,"end_of_word_suffix":"_"/' "$seeds/tokenizer/json" > "$seeds/tokenizer/json-suffix"
for line in '--bound=1e-7' '--calibration=channels+first --bound=0' '--distill=1' '-b 1048576 -t 99999 --n-layer 99 --n-embd 9999 --n-head 1'; do
    printf '%s\n' $line > "$seeds/options/line-$((i += 1))"
done
printf '%s\n' -i corpus.txt -b 2 -t 16 -d 64 --gate-warmup 5% -k wsd --no-shuffle --lr=3e-4 > "$seeds/options/line"
# Bytes of tests/fuzz/logits_case.h: every norm, gate and fold, the last with a bound too.
for norm in 0 1; do for mode in 0 1 2; do for fold in 0 1 2 3 4 6 7; do
    printf "\\x1\\x1\\x$((mode + 3))\\x$((40 + fold))\\x30\\x$norm\\x$mode\\x$fold\\x$((mode))\\x3The cat sat" > "$seeds/instruction_sets/$norm$mode$fold"
done; done; done
printf '%s\n' '{"ctx": "The cat", "endings": ["sat", "ran \\u00e4"], "label": 0}' '{"ctx": "A", "endings": ["b"], "label": "0"}' \
    > "$seeds/hellaswag/lines"
# llm.c's: 256 int32 (magic, version, items, longest), then uint16: start, bytes, number, label, endings, counts and ids.
{ printf '\x8a\xd8\x34\x01\1\0\0\0\1\0\0\0'; head -c 1012 /dev/zero; printf '\xff\xff'
    for n in 18 0 0 1 1 7 1 8; do printf "\\x$(printf %x $n)\0"; done; } > "$seeds/hellaswag/llmc"
# What torch.save writes: an archive, and a pickle alone ({"a": a tensor [4, 4] of the storage 0, "b": a row of it}).
cp tests/golden/torch/pytorch_model.bin "$seeds/torch_file/archive"
{ printf '\x80\2ccollections\nOrderedDict\nq\0)R(X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\nq\1((X\7\0\0\0storagectorch\nFloatStorage\n'
    printf 'X\1\0\0\0000X\3\0\0\0cpuK\20tQq\2K\0K\4K\4\x86K\4K\1\x86\x89h\0)RtRX\1\0\0\0bh\1(h\2M\4\0K\4\x85J\1\0\0\0\x85\x89NtR'
    printf 'u}X\1\0\0\0m}X\1\0\0\0v\x8a\1\1ssb.'; } > "$seeds/torch_file/pickle"
printf '1,2,30\xffThe cat\xffThe cat\r\nsat\n' > "$seeds/prompts/all"
touch "$seeds/done"
