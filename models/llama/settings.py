"""What can be set about a local model; plain values only, so that they cross the process boundary as JSON."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

KvType: TypeAlias = Literal["f16", "q8_0"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSettings:
    """One GGUF file and how to run it. Times are in seconds; 0 means "choose for me" where it makes no sense itself."""

    path: str
    name: str
    """The name that answers carry in `model`."""
    sha256: str = ""
    """Of the file; computed once it is asked for, where it is not given."""
    context_length: int = 8192
    """Tokens that one request's prompt and answer may share; never more than the model was trained for."""
    slots: int = 4
    """Requests decoded at the same time."""
    cache_tokens: int = 0
    """Tokens of keys and values that all slots share; 0: twice the context length, or once with a single slot."""
    kv_type: KvType = "f16"
    threads: int = 0
    threads_batch: int = 0
    batch: int = 512
    """Prompt tokens per step while nobody else is being answered."""
    ubatch: int = 512
    stall: float = 0.2
    """How long one step may hold up running answers for the sake of someone else's prompt."""
    repack: bool = False
    """Rearrange weights at load: faster generation, slower prompts and load, and the file's size again in memory."""
    queue_limit: int = 32
    """Choices that may wait for a slot; more are refused as busy."""
    timeout: float = 600.0
    """From a request's arrival to its last token."""
    idle_unload: float = 0.0
    """Free the model after so long without a request; 0: never."""
    saved_bytes: int = 256 * 1024 * 1024
    """Memory for the keys and values of conversations that lost their slot."""
    disk_folder: str = ""
    """Where conversations are kept across restarts, which holds their content; empty: nowhere."""
    disk_bytes: int = 512 * 1024 * 1024
    """Disk space for them."""
    confidence_tokens: int = 32
    """How many tokens from the start of an answer come with a `Confidence` event."""
    hidden_state: bool = False
    """Whether each answer comes with a `Hidden` event, after its first token."""
    max_tokens: int = 2048
    """Length of an answer where the request does not say."""
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    trust_template: bool = False
    """Let the file's own chat template (a program by its author) render prompts where upcall has none for the model."""
