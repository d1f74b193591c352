"""The compiled half of the package. Use the names that ``fastffn`` exports."""

from typing import Any, TypedDict, TypeVar, final, overload

_X = TypeVar("_X")
_Y = TypeVar("_Y")

__version__: str

@overload
def linear(x: _X, w: Any, bias: Any = None, *, out: None = None, stream: Any = None, workspace: Any = None) -> _X: ...
@overload
def linear(x: Any, w: Any, bias: Any = None, *, out: _Y, stream: Any = None, workspace: Any = None) -> _Y: ...
@overload
def ffn(
    x: _X,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    segments: Any = None,
    sub_norm: Any = None,
    sub_norm_eps: float = 1e-05,
    gate_first: bool | str = "auto",
    out: None = None,
    stream: Any = None,
    workspace: Any = None,
) -> _X: ...
@overload
def ffn(
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    segments: Any = None,
    sub_norm: Any = None,
    sub_norm_eps: float = 1e-05,
    gate_first: bool | str = "auto",
    out: _Y,
    stream: Any = None,
    workspace: Any = None,
) -> _Y: ...
@overload
def moe(
    x: _X,
    ids: Any,
    weights: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    shared: Any = None,
    special: Any = None,
    weights_on_input: bool = False,
    load: Any = None,
    sub_norm: Any = None,
    sub_norm_eps: float = 1e-05,
    out: None = None,
    stream: Any = None,
    workspace: Any = None,
) -> _X: ...
@overload
def moe(
    x: Any,
    ids: Any,
    weights: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    shared: Any = None,
    special: Any = None,
    weights_on_input: bool = False,
    load: Any = None,
    sub_norm: Any = None,
    sub_norm_eps: float = 1e-05,
    out: _Y,
    stream: Any = None,
    workspace: Any = None,
) -> _Y: ...
@overload
def route_topk(
    logits: _X,
    k: int | None,
    *,
    score: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    bias: Any = None,
    correction_bias: Any = None,
    groups: int = 1,
    topk_groups: int | None = None,
    group_score: str = "max",
    top_p: float = 1.0,
    gamma: Any = None,
    norm_eps: float = 1e-06,
    capacity_factor: float | None = None,
    out: None = None,
    stream: Any = None,
    workspace: Any = None,
) -> tuple[_X, _X]: ...
@overload
def route_topk(
    logits: Any,
    k: int | None,
    *,
    score: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    bias: Any = None,
    correction_bias: Any = None,
    groups: int = 1,
    topk_groups: int | None = None,
    group_score: str = "max",
    top_p: float = 1.0,
    gamma: Any = None,
    norm_eps: float = 1e-06,
    capacity_factor: float | None = None,
    out: _Y,
    stream: Any = None,
    workspace: Any = None,
) -> _Y: ...
def route_expert_choice(
    logits: Any,
    k: int | None,
    capacity: int | None,
    capacity_factor: float | None,
    score: str,
    out: Any,
    stream: Any = None,
) -> tuple[Any, Any]: ...
def route_hash(tokens: Any, table: Any, out: Any, stream: Any = None) -> tuple[Any, Any]: ...
def limit_capacity(
    ids: Any, weights: Any, num_experts: int, capacity: int | None, capacity_factor: float | None, stream: Any = None
) -> tuple[Any, Any]: ...
def expert_load(ids: Any, num_experts: int, stream: Any = None) -> Any: ...
def router_logits(x: Any, w: Any, bias: Any, previous: Any, mix: Any, out: Any, stream: Any = None) -> Any: ...
def router_scores() -> tuple[str, ...]: ...
def moe_workspace(threads: int, *args: Any, **keywords: Any) -> int: ...
def seconds_per_moe(repeats: int, *args: Any, **keywords: Any) -> float: ...
def seconds_per_route(repeats: int, *args: Any, **keywords: Any) -> float: ...
@overload
def fff(
    x: _X,
    tree: Any,
    w_up: Any = None,
    w_down: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    *,
    activation: str,
    leaf: Any = None,
    master_up: Any = None,
    master_down: Any = None,
    master_b_up: Any = None,
    master_b_down: Any = None,
    mix: float | None = None,
    plan: str = "auto",
    out: None = None,
    stream: Any = None,
    workspace: Any = None,
) -> _X: ...
@overload
def fff(
    x: Any,
    tree: Any,
    w_up: Any = None,
    w_down: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    *,
    activation: str,
    leaf: Any = None,
    master_up: Any = None,
    master_down: Any = None,
    master_b_up: Any = None,
    master_b_down: Any = None,
    mix: float | None = None,
    plan: str = "auto",
    out: _Y,
    stream: Any = None,
    workspace: Any = None,
) -> _Y: ...
def fff_route(
    x: Any, tree: Any, z: bool, plan: str, stream: Any = None, workspace: Any = None
) -> tuple[Any, Any, Any]: ...
def pack_tree(
    w_node: Any, b_node: Any, w_out: Any, threshold: Any, format: str, route_format: str, tie: str
) -> Any: ...
def tree_info(tree: Any) -> tuple[str, int, int, int, int, int, str, str, str, bool, bool, int]: ...
def verify_tree(tree: Any) -> None: ...
def unpack_tree(tree: Any) -> tuple[Any, Any, Any, Any]: ...
def fff_workspace(threads: int, *args: Any, **keywords: Any) -> int: ...
def seconds_per_fff(repeats: int, *args: Any, **keywords: Any) -> float: ...
def torch_linear(
    x: _X,
    w: Any,
    bias: Any = None,
    *,
    out: Any = None,
    stream: Any = None,
    workspace: Any = None,
    out_features: int | None = None,
) -> _X: ...
def torch_ffn(
    x: _X,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    segments: Any = None,
    sub_norm: Any = None,
    sub_norm_eps: float = 1e-05,
    gate_first: bool | str = "auto",
    out: Any = None,
    stream: Any = None,
    workspace: Any = None,
    out_features: int | None = None,
) -> _X: ...
def torch_moe(
    x: _X,
    ids: Any,
    weights: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    shared: Any = None,
    special: Any = None,
    weights_on_input: bool = False,
    load: Any = None,
    out: Any = None,
    stream: Any = None,
    workspace: Any = None,
    out_features: int | None = None,
) -> _X: ...
def torch_fff(
    x: _X,
    tree: Any,
    w_up: Any = None,
    w_down: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    *,
    activation: str,
    leaf: Any = None,
    master_up: Any = None,
    master_down: Any = None,
    master_b_up: Any = None,
    master_b_down: Any = None,
    mix: float | None = None,
    plan: str = "auto",
    out: Any = None,
    stream: Any = None,
    workspace: Any = None,
    out_features: int | None = None,
) -> _X: ...
def torch_route_topk(
    logits: Any,
    k: int | None,
    *,
    score: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    bias: Any = None,
    correction_bias: Any = None,
    groups: int = 1,
    topk_groups: int | None = None,
    group_score: str = "max",
    top_p: float = 1.0,
    gamma: Any = None,
    norm_eps: float = 1e-06,
    capacity_factor: float | None = None,
    out: Any = None,
    stream: Any = None,
    workspace: Any = None,
) -> Any: ...
def set_torch_handler(operation: str, function: Any) -> None: ...
def linear_workspace(x: Any, w: Any, threads: int) -> int: ...
def ffn_workspace(
    x: Any, w_up: Any, w_down: Any, w_gate: Any, sub_norm: Any, activation: Any, gate_first: Any, threads: int
) -> int: ...
def hadamard(x: Any, mode: str, block: int, inverse: bool, out: Any, stream: Any, workspace: Any) -> Any: ...
def quantize(x: Any, dtype: str, stream: Any, workspace: Any) -> tuple[Any, Any]: ...
def pack(w: _X, format: str, options: dict[str, Any]) -> _X: ...
def pack_factors(u: _X, v: Any, factors: str) -> _X: ...
def unpack(packed: _X, dtype: str) -> _X: ...
def unpack_codes(packed: Any) -> tuple[Any, Any, Any, Any, int]: ...
def inspect(packed: Any) -> tuple[str, int, int, int, int, dict[str, Any]]: ...
def verify(packed: Any) -> None: ...
def mask24(scores: _X, transposable: bool) -> _X: ...
def check24(w: Any) -> tuple[tuple[int, int, int, int, int], tuple[int, int, int] | None]: ...
def patterns24() -> tuple[int, ...]: ...
def formats() -> tuple[str, ...]: ...
def activations() -> tuple[str, ...]: ...
def active_kernel(format: str, options: dict[str, Any]) -> str: ...
def last_kernel() -> str: ...
def set_num_threads(threads: int) -> None: ...
def get_num_threads() -> int: ...
def seconds_per_call(operation: str, repeats: int, *args: Any, **keywords: Any) -> float: ...

@final
class DeviceWeight:
    @property
    def array(self) -> Any: ...
    @property
    def device(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def header(self) -> bytes: ...
    def copy_to_host(self, stream: Any = None) -> Any: ...

@final
class DeviceTree:
    @property
    def array(self) -> Any: ...
    @property
    def device(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def header(self) -> bytes: ...
    def copy_to_host(self, stream: Any = None) -> Any: ...

def device_tree(tree: Any, stream: Any = None, header: bytes | None = None) -> DeviceTree: ...
def tree_to_device_layout(tree: Any) -> Any: ...
def tree_to_cpu_layout(tree: Any) -> Any: ...
def device_weight(packed: Any, stream: Any = None, header: bytes | None = None) -> DeviceWeight: ...
def device_workspace(operation: Any, *args: Any, **keywords: Any) -> int: ...
def pack_for_device(w: Any, format: str, options: dict[str, Any]) -> Any: ...
def to_device_layout(packed: Any) -> Any: ...
def to_cpu_layout(packed: Any) -> Any: ...
def verify_device_bytes(packed: Any) -> None: ...

class _Machine(TypedDict):
    vendor: str
    brand: str
    isa_found: str
    isa_chosen: str
    isa_reason: str
    isa_error: str
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    threading: str
    cuda_build: str
    compiler: str

def machine() -> _Machine: ...

class _CudaDevice(TypedDict):
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    has_code: bool
    memory_bytes: int
    l2_bytes: int

class _Cuda(TypedDict):
    available: bool
    reason: str
    path: str
    version: str
    architectures: str
    devices: list[_CudaDevice]

def cuda() -> _Cuda: ...

@final
class Array:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    def __dlpack__(
        self, *, stream: object = None, max_version: object = None, dl_device: object = None, copy: object = None
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
