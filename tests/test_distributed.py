"""DistributedDataParallel, FSDP2 and distributed checkpoints in two processes over gloo, on the CPU.

Every check runs in both processes, each with half of the batch, and is held against one process with all of it. Would
catch a parameter that FSDP2 shards and the module does not look up again, one that takes no part in the graph, a
gradient that is reduced before it is whole, and a state dict that does not fit. The processes are started once for all
tests, and every warning is an error in them.
"""

import datetime
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import assert_all_close, normal, relative_error, seeded
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

from manual_bptt import RNN, RNNCell, convert, record_gradients, restore

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo in this build"
)

RANKS = 2
T, B, D, H, K = 5, 6, 4, 7, 3
LENGTHS = [2, 5, 3, 4, 5, 1]  # both halves unsorted
EXACT = 1e-12


class Network(nn.Module):
    """Two layers in both directions, a cell and a linear layer, over what the batch is laid out as."""

    def __init__(
        self, layout: str = "dense", rnn: Any = RNN, cell: Any = RNNCell, nonlinearity: str = "relu", **options: Any
    ) -> None:
        super().__init__()
        self.layout = layout
        self.rnn = rnn(D, H, 2, bidirectional=True, **options)
        self.cell = cell(2 * H, H, nonlinearity=nonlinearity, **options)
        self.linear = nn.Linear(H, K, **options)

    def forward(self, sequences: Tensor, places: slice) -> Tensor:
        lengths = LENGTHS[places]
        if self.layout == "packed":
            rows = pack_sequence([x[:n] for x, n in zip(sequences.unbind(1), lengths, strict=True)], False)
            packed, h_n = self.rnn(rows)
            output = pad_packed_sequence(packed, total_length=T)[0]
        elif self.layout == "lengths":
            output, h_n = self.rnn(sequences, lengths=lengths)
        else:
            output, h_n = self.rnn(sequences)
        h = h_n[0]
        for step in output:
            h = self.cell(step, h)
        return self.linear(h)


def network(layout: str = "dense", **options: Any) -> Network:
    torch.manual_seed(0)
    return Network(layout, **{"dtype": torch.float64, **options})


def loss_of(model: Callable[..., Tensor], places: slice = slice(None), step: int = 0) -> Tensor:
    """The mean over some of the sequences."""
    x = normal(seeded(1 + step), T, B, D)[:, places]
    weights = normal(seeded(20 + step), B, K)[places]
    output = model(x.to(torch.get_default_dtype()), places)
    return (output.double() * weights).sum() / weights.shape[0] + (output.double() * weights).square().mean()


def mine() -> slice:
    half = B // RANKS
    return slice(distributed.get_rank() * half, (distributed.get_rank() + 1) * half)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def single(layout: str = "dense", steps: int = 1, **options: Any) -> dict[str, Tensor]:
    """Gradients of one process with the whole batch, summed over steps."""
    model = network(layout, **options)
    for step in range(steps):
        loss_of(model, step=step).backward()
    return gradients(model)


# ---- what runs in both processes


def ddp_gradients(layout: str) -> None:
    model = nn.parallel.DistributedDataParallel(network(layout))
    loss_of(model, mine()).backward()
    assert_all_close(gradients(model), single(layout), EXACT)
    assert len(gradients(model)) == len(list(model.parameters()))


def ddp_static_graph() -> None:
    model = nn.parallel.DistributedDataParallel(network(), static_graph=True, gradient_as_bucket_view=True)
    for step in range(3):
        model.zero_grad()
        loss_of(model, mine(), step).backward()
        truth = network()
        loss_of(truth, step=step).backward()
        assert_all_close(gradients(model), gradients(truth), EXACT)


def ddp_unused_parameters(static_graph: bool) -> None:
    """The cell and the linear layer take no part in the loss."""

    class Unused(Network):
        def forward(self, sequences: Tensor, places: slice) -> Tensor:
            output, _ = self.rnn(sequences)
            return output[-1, :, :K]

    def build() -> Unused:
        torch.manual_seed(0)
        return Unused(dtype=torch.float64)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed find_unused_parameters", UserWarning)  # torch's own advice
        model = nn.parallel.DistributedDataParallel(build(), find_unused_parameters=True, static_graph=static_graph)
    truth = build()
    for step in range(2):
        model.zero_grad()
        truth.zero_grad()
        loss_of(model, mine(), step).backward()
        loss_of(truth, step=step).backward()
        assert_all_close(
            {name: p for name, p in gradients(model).items() if name in gradients(truth)}, gradients(truth), EXACT
        )
        assert {name.split(".")[0] for name in gradients(truth)} == {"rnn"}


def ddp_accumulates_without_sync() -> None:
    model = nn.parallel.DistributedDataParallel(network())
    with model.no_sync():
        loss_of(model, mine(), 0).backward()
    loss_of(model, mine(), 1).backward()
    assert_all_close(gradients(model), single(steps=2), EXACT)


def ddp_converted_under_way() -> None:
    """The reducer of the wrapper still knows the parameters."""
    model = nn.parallel.DistributedDataParallel(network(rnn=nn.RNN, cell=nn.RNNCell))
    for step, way in enumerate((convert, restore)):
        assert way(model) is model
        model.zero_grad()
        loss_of(model, mine(), step).backward()
        truth = network()
        loss_of(truth, step=step).backward()
        assert_all_close(gradients(model), gradients(truth), EXACT)
    assert type(model.module.rnn) is nn.RNN


def ddp_recorded() -> None:
    """The record holds this process's own sequences: its loss is the mean over half as many of them."""
    model, truth = nn.parallel.DistributedDataParallel(network()), network()
    with record_gradients(model.module.rnn) as record, record_gradients(truth.rnn) as whole:
        (loss_of(model, mine())).backward()
        (loss_of(truth, mine())).backward()
    names = ("l0", "l0_reverse", "l1", "l1_reverse")
    assert_all_close({n: record[n].dh for n in names}, {n: whole[n].dh for n in names}, EXACT)
    assert_all_close(gradients(model), single(), EXACT)


def sharded(model: nn.Module, parts: tuple[str, ...] = ("rnn",), **options: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
    for part in parts:
        fully_shard(getattr(model, part), mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}


def two_steps(model: nn.Module, places: slice, optimizer: Any = torch.optim.Adam) -> None:
    trained = optimizer(model.parameters(), lr=0.02)
    for step in range(2):
        loss_of(model, places, step).backward()
        trained.step()
        trained.zero_grad()


def fsdp_steps(layout: str) -> None:
    model, truth = sharded(network(layout)), network(layout)
    assert all(isinstance(p, distributed.tensor.DTensor) for p in model.parameters())
    two_steps(model, mine())
    two_steps(truth, slice(None))
    assert_all_close(whole(model), {name: p.detach() for name, p in truth.named_parameters()}, 1e-10)
    start = network(layout).rnn.weight_hh_l1_reverse.detach()
    assert relative_error(whole(model)["rnn.weight_hh_l1_reverse"], start) > 1e-2


def fsdp_of_batch_first(rnn: Any) -> None:
    """FSDP2 warns of a module whose output is a view: an edit of it in place would drop its hook."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    module, truth = rnn(D, H, batch_first=True), nn.RNN(D, H, batch_first=True)
    truth.load_state_dict(module.state_dict())
    fully_shard(module, mesh=distributed.device_mesh.init_device_mesh("cpu", (RANKS,)))
    loss_of(lambda x, places: module(x.transpose(0, 1))[0][:, -1, :K], mine()).backward()
    loss_of(lambda x, places: truth(x.transpose(0, 1))[0][:, -1, :K]).backward()
    assert_all_close({name: grad.full_tensor() for name, grad in gradients(module).items()}, gradients(truth), EXACT)


def fsdp_of_a_cell(rnn: Any, cell: Any) -> None:
    """The same of a cell, which is called many times before backward."""
    model = sharded(network(rnn=rnn, cell=cell), ("rnn", "cell"))
    loss_of(model, mine()).backward()
    assert_all_close({name: grad.full_tensor() for name, grad in gradients(model).items()}, single(), EXACT)


def fsdp_clips_and_keeps_parameters_gathered() -> None:
    model, truth = sharded(network(), reshard_after_forward=False), network()
    loss_of(model, mine()).backward()
    loss_of(truth).backward()
    norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.1) for m in (model, truth)]
    assert_all_close({"norm": norms[0].full_tensor()}, {"norm": norms[1]}, EXACT)
    found = {name: grad.full_tensor() for name, grad in gradients(model).items()}
    assert_all_close(found, gradients(truth), EXACT)


def fsdp_after_convert() -> None:
    model = sharded(convert(network(rnn=nn.RNN, cell=nn.RNNCell)))
    loss_of(model, mine()).backward()
    assert_all_close({name: grad.full_tensor() for name, grad in gradients(model).items()}, single(), EXACT)


def fsdp_from_meta() -> None:
    model = sharded(network(device="meta"))
    model.to_empty(device="cpu")
    state_of(model, network().state_dict())
    loss_of(model, mine()).backward()
    assert_all_close({name: grad.full_tensor() for name, grad in gradients(model).items()}, single(), EXACT)


def fsdp_mixed_precision() -> None:
    """As close to float64 as torch.nn.RNN comes in the same setting, within a factor of two."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    torch.set_default_dtype(torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    errors: dict[str, dict[str, float]] = {}
    for kind, classes in {"mine": {}, "torch's": {"rnn": nn.RNN, "cell": nn.RNNCell}}.items():
        model = sharded(network(nonlinearity="tanh", **classes).float(), mp_policy=policy)
        seen: list[torch.dtype] = []
        model.rnn.register_forward_hook(lambda m, a, output, seen=seen: seen.append(output[0].dtype))
        loss_of(model, mine()).backward()
        assert seen == [torch.bfloat16]
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        found = {name: grad.full_tensor() for name, grad in gradients(model).items()}
        torch.set_default_dtype(torch.float64)
        truth = single(nonlinearity="tanh")  # the signs at relu's kink would depend on the rounding
        torch.set_default_dtype(torch.float32)
        errors[kind] = {name: relative_error(found[name], truth[name]) for name in truth}
        two_steps(model, mine())
        assert all(value.isfinite().all() for value in whole(model).values())
    mine_is, theirs = (sum(errors[kind].values()) / len(errors[kind]) for kind in ("mine", "torch's"))
    assert mine_is < 2 * theirs, errors
    assert 1e-4 < mine_is < 0.01, errors


def state_of(model: nn.Module, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    options = StateDictOptions(full_state_dict=True)
    if state is not None:
        assert not any(set_model_state_dict(model, dict(state), options=options))
    return get_model_state_dict(model, options=options)


def checkpoint_state_dicts() -> None:
    torch.manual_seed(3)
    trained = network()
    two_steps(trained, slice(None))
    for wrap in (sharded, nn.parallel.DistributedDataParallel):
        model = wrap(network())
        state = state_of(model, trained.state_dict())
        assert list(state) == list(trained.state_dict())
        assert_all_close(state, trained.state_dict(), EXACT)
        plain = network(rnn=nn.RNN, cell=nn.RNNCell)
        plain.load_state_dict(state, strict=True)
        assert_all_close({"loss": loss_of(model, mine())}, {"loss": loss_of(plain, mine())}, EXACT)


def checkpoint_files(folder: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model = sharded(network())
    two_steps(model, mine())
    checkpoint.save(get_model_state_dict(model), checkpoint_id=folder)
    other = sharded(network())
    state = get_model_state_dict(other)
    checkpoint.load(state, checkpoint_id=folder)
    set_model_state_dict(other, state)
    assert_all_close(whole(other), whole(model), EXACT)
    assert relative_error(whole(other)["rnn.weight_hh_l0"], network().rnn.weight_hh_l0.detach()) > 1e-3


def a_wrong_gradient_is_seen() -> None:
    """Half of the batch is not all of it."""
    model = nn.parallel.DistributedDataParallel(network())
    with model.no_sync():
        loss_of(model, mine()).backward()
    with pytest.raises(AssertionError, match="relative error"):
        assert_all_close(gradients(model), single(), EXACT)


CHECKS: dict[str, Callable[..., None]] = {
    "ddp_gradients-dense": lambda: ddp_gradients("dense"),
    "ddp_gradients-packed": lambda: ddp_gradients("packed"),
    "ddp_gradients-lengths": lambda: ddp_gradients("lengths"),
    "ddp_static_graph": ddp_static_graph,
    "ddp_unused_parameters": lambda: ddp_unused_parameters(False),
    "ddp_unused_parameters-static_graph": lambda: ddp_unused_parameters(True),
    "ddp_accumulates_without_sync": ddp_accumulates_without_sync,
    "ddp_converted_under_way": ddp_converted_under_way,
    "ddp_recorded": ddp_recorded,
    "fsdp_steps-dense": lambda: fsdp_steps("dense"),
    "fsdp_steps-packed": lambda: fsdp_steps("packed"),
    "fsdp_steps-lengths": lambda: fsdp_steps("lengths"),
    "fsdp_of_batch_first-torchs": lambda: fsdp_of_batch_first(nn.RNN),
    "fsdp_of_batch_first": lambda: fsdp_of_batch_first(RNN),
    "fsdp_of_a_cell-torchs": lambda: fsdp_of_a_cell(nn.RNN, nn.RNNCell),
    "fsdp_of_a_cell": lambda: fsdp_of_a_cell(RNN, RNNCell),
    "fsdp_clips_and_keeps_parameters_gathered": fsdp_clips_and_keeps_parameters_gathered,
    "fsdp_after_convert": fsdp_after_convert,
    "fsdp_from_meta": fsdp_from_meta,
    "fsdp_mixed_precision": fsdp_mixed_precision,
    "checkpoint_state_dicts": checkpoint_state_dicts,
    "a_wrong_gradient_is_seen": a_wrong_gradient_is_seen,
}


def run_all(rank: int, folder: Path) -> None:
    """Run every check in a group of its own and leave its traceback, or nothing, in a file."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    checks = {**CHECKS, "checkpoint_files": lambda: checkpoint_files(folder / "checkpoint")}
    for name, check in checks.items():
        torch.set_default_dtype(torch.float64)
        try:
            distributed.init_process_group(
                "gloo",
                init_method=f"file://{folder}/{name}.store",
                rank=rank,
                world_size=RANKS,
                timeout=datetime.timedelta(seconds=10),
            )
            check()
            distributed.barrier()
            report = ""
        except BaseException:
            report = traceback.format_exc()
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
        (folder / f"{name}.{rank}").write_text(report, encoding="utf-8")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which both processes have left a report of every check."""
    folder = tmp_path_factory.mktemp("distributed")
    multiprocessing.spawn(run_all, (folder,), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("check", [*CHECKS, "checkpoint_files"])
def test_two_processes_are_as_one(check, reports):
    for rank in range(RANKS):
        report = (reports / f"{check}.{rank}").read_text(encoding="utf-8")
        assert not report, f"process {rank}:\n{report}"


def test_a_failing_child_fails_with_its_traceback(reports):
    (reports / "planted.0").write_text("", encoding="utf-8")
    (reports / "planted.1").write_text("Traceback: ValueError: planted", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"process 1:\s+Traceback: ValueError: planted"):
        test_two_processes_are_as_one("planted", reports)


def test_lengths_of_both_halves_are_unsorted_and_padded():
    """Else the packed checks would see less than they say."""
    for half in (LENGTHS[: B // RANKS], LENGTHS[B // RANKS :]):
        assert half != sorted(half, reverse=True)
        assert pad_sequence([torch.zeros(n) for n in half]).shape[0] == T
