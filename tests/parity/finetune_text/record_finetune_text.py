"""Records token ids and sentence vectors of Python's BERT for the tokenizer and encoder of examples/finetune_text.

Usage: PYTHON record_finetune_text.py MODEL     (torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3)

MODEL is a folder with config.json, model.safetensors and vocab.txt of all-MiniLM-L6-v2. Writes, beside this script, a
vocabulary of a few hundred pieces, a small encoder with random weights and what both make of the sentences, which is all
that the tests need; and examples/finetune_text/reference.json for the real weights, which the program checks when it starts.
"""

import json
import pathlib
import sys

import safetensors.torch
import tokenizers
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLE = HERE.parents[2] / "examples" / "finetune_text"

SENTENCES = [
    "An absorbing, quietly devastating film.",
    "Not so much a movie as a two-hour headache!",
    "The Rock is destined to be the 21st Century's new ''Conan''.",
    "Münch's genuine insight makes the film's occasional overindulgence forgivable.",
    "Sex and Lucía (2001) makes for an arousing good time – but heck…",
    "Jirí Hubac's script is a gem; naïve, Ångström, İstanbul, ΣΊΣΥΦΟΣ, Straße.",
    "Well... it's OK, I guess?  It won't   bust your gut",
    "tabs\tand\nlines\r\nand\u00a0hard\u2003spaces",
    "我喜欢这部电影,真的。",
    "映画はとても面白かった! 한국 영화도 좋아요",
    "Фильм был очень Ёлочный и скучный",
    "e\u0301 is e and an accent; \u1e9b\u0323 is odd; \ufb01ne \u2163 \u210d",
    "zero\u200bwidth, soft\u00adhyphen, bell\u0007 and \ufffd disappear",
    "10/10 would watch again :-) $5.99 @home #nofilter 100%",
    "x" * 101 + " " + "y" * 100,
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "the [MASK] is [mask]ed and [SEP]arated [UNK",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 and flags \U0001f1eb\U0001f1f7 \u2764\ufe0f",
    "مرحبا بالعالم هذا فيلم جميل",
    "नमस्ते दुनिया यह फिल्म अच्छी है",
    "",
    "dull, lifeless, and amateurishly assembled . " * 9,
    "`quotes' \"double\" «guillemets» „low“ ^caret |pipe| ~tilde + < = >",
]
SHORT = 12


def tokenizer(vocabulary):
    made = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def ids_of(made, text, limit):
    made.enable_truncation(limit)
    return made.encode(text).ids


def vectors(model, ids):
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return torch.nn.functional.normalize(states.mean(0), dim=0)


def record(model, made, limit):
    entries = []
    for text in SENTENCES:
        ids = ids_of(made, text, limit)
        entries.append({"text": text, "ids": ids, "short_ids": ids_of(made, text, SHORT),
                        "vector": [round(x, 7) for x in vectors(model, ids).tolist()]})
    return entries


def dump(path, settings, entries):
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    with open(path, "w") as out:
        out.write(json.dumps({**versions, **settings})[:-1] + ', "sentences": [\n')
        out.write(",\n".join(json.dumps(entry) for entry in entries) + "\n]}\n")


def small_vocabulary(full, used):
    """The pieces used, all of one character that occur in them, and the special ones; in the full vocabulary's order."""
    pieces = full.read_text().split("\n")
    short = {piece for piece in pieces if len(piece.removeprefix("##")) == 1 and piece.removeprefix("##").isascii()}
    wanted = {pieces[i] for i in used} | short | {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    # Every third longer piece is left out, so that words are also put together from short ones.
    longer = sorted(piece for piece in wanted - short if not piece.startswith("["))
    wanted -= set(longer[::3])
    return [piece for piece in pieces if piece in wanted]


def main():
    folder = pathlib.Path(sys.argv[1])
    full = tokenizer(folder / "vocab.txt")
    model = transformers.BertModel.from_pretrained(folder).eval()
    entries = record(model, full, 256)
    dump(EXAMPLE / "reference.json", {"max_tokens": 256, "short": SHORT}, entries)

    pieces = small_vocabulary(folder / "vocab.txt", {i for entry in entries for i in entry["ids"]})
    (HERE / "small_vocab.txt").write_text("\n".join(pieces) + "\n")
    torch.manual_seed(3)
    sizes = {"vocab_size": len(pieces), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 32, "max_position_embeddings": 128}
    small = transformers.BertModel(transformers.BertConfig(**sizes, initializer_range=0.3, layer_norm_eps=1e-12),
                                   add_pooling_layer=True).eval()
    for name, parameter in small.named_parameters():  # biases and norms start at 0 and 1, which would hide mistakes
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    safetensors.torch.save_file(small.state_dict(), HERE / "small.safetensors")
    entries = record(small, tokenizer(HERE / "small_vocab.txt"), 128)
    dump(HERE / "small.json", {**sizes, "max_tokens": 128, "short": SHORT}, entries)


if __name__ == "__main__":
    main()
