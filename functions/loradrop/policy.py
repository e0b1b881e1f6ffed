"""What an upload may cost whoever reads it: each limit with its reason."""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Policy:
    # r=256 in float32 on an 8B model is 2.7 GB; nothing that fits a GPU slot is larger.
    max_compressed_bytes: int = 4 * GIB
    max_unpacked_bytes: int = 4 * GIB

    # Trained weights compress to 0.75 in bf16 and to 0.4 when bf16 was saved as float32; deflate's own limit is 1032.
    # A small archive may exceed the ratio, so that an untrained adapter is reported as such, and not as a bomb.
    max_ratio: int = 100
    ratio_free_bytes: int = 32 * MIB

    # What cannot be compressed is stored, at 5 bytes for each 64 KiB. More is empty blocks, which take time and hold nothing.
    max_deflate_overhead: float = 0.01
    deflate_overhead_free_bytes: int = 1 * MIB
    # Of the thread that inflates: an ordinary archive comes at 100 to 500 MB/s. Blocks made to be slow come at 3.
    min_inflate_bytes_per_second: float = 20e6
    inflate_free_seconds: float = 5.0

    # `save_pretrained` writes 3 files, a Trainer checkpoint with its tokenizer about 15.
    max_members: int = 256
    # Of what lies beside an adapter: the largest tokenizers have a half of it.
    max_usual_file_bytes: int = 64 * MIB
    # What every file system takes.
    max_name_bytes: int = 255
    # A pax or GNU header holds one name and a few times; macOS adds extended attributes.
    max_extended_header_bytes: int = 64 * KIB

    # The largest configurations in the wild list every module's full name: about 60 KB.
    max_config_bytes: int = 256 * KIB
    # A configuration nests 3 deep; Python's reader and that of safetensors stop far below this.
    max_json_depth: int = 32
    # Tensors by name, their fields, the lists in them. Nested lists are what takes the most memory per byte of JSON.
    max_header_depth: int = 3
    # A 126-layer model with all 7 modules has 1,764 tensors in 250 KB. Parsed JSON takes up to 25 times its bytes.
    max_header_bytes: int = 1 * MIB
    max_smoke_bytes: int = 64 * KIB

    # People train with alpha from r/2 to 4r; rsLoRA at r=64, alpha=128 makes 16.
    usual_scaling: tuple[float, float] = (0.05, 64.0)
    # Beyond these no training can make up for the scale.
    effective_scaling: tuple[float, float] = (1e-6, 1e6)

    # Bytes asked of the stream at once, and of the decompressor at once: large enough that Python's own cost and the
    # changes between threads vanish, small enough that the pipeline holds about 8 MiB.
    read_bytes: int = 1 * MIB
    inflate_bytes: int = 512 * KIB
    read_ahead: int = 2
    inflate_ahead: int = 4


DEFAULT_POLICY = Policy()
