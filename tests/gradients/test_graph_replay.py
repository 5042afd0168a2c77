"""Graphs replayed without a GPU: what a capture records is run again, as it is on one.

The stand-in records the operators that PyTorch runs between the begin and the end of a capture, and
a replay runs these on the same memory. No Python of the model runs, so stale results show.
"""

import threading
import time
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradood
from gradood.errors import InputError
from gradood.gradients import cuda_graph, cuda_graphs, scorer
from gradood.gradients.norms import Norms


class Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out


class Graph:
    calls = ()
    pause = 0.0

    def replay(self):
        time.sleep(self.pause)
        with torch.no_grad():
            for function, args, kwargs, out in self.calls:
                again = function(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.detach().copy_(new)


class Stream:
    def __init__(self, device=None):
        self.device, self.events = device, []

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        self.events.append(("wait", event))


class Event:
    def record(self, stream):
        stream.events.append(("record", self))


@pytest.fixture
def captures(monkeypatch):
    """How many graphs were captured, each with its stream."""
    found = []

    @contextmanager
    def graph(target, stream=None):
        found.append(stream)
        with Recording() as recording:
            yield
        target.calls = recording.calls

    current = Stream("current")
    stand_ins = {
        "CUDAGraph": Graph,
        "graph": graph,
        "Stream": Stream,
        "Event": Event,
        "device": lambda device: nullcontext(),
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device=None: current,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda_graph, "check_device", lambda x: None)
    return found


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU())
        self.head = nn.Linear(7, 5)
        self.act = torch.relu
        self.slope, self.options = 1.0, {"scale": [1.0]}
        factor = 1.0

        def scaled(x):
            return x * factor

        def change(value):
            nonlocal factor
            factor = value

        self.scaled, self.change = scaled, change

    def forward(self, x):
        x = self.act(self.norm(self.conv(x))) * self.slope * self.options["scale"][0]
        return self.head(self.scaled(self.body(x)))


def network():
    torch.manual_seed(0)
    return Net().eval()


def batch(seed=0):
    return torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def same(model, x, **options):
    got = gradood.gradient_norms(model, x, cuda_graph=True, **options)
    torch.testing.assert_close(got.values, gradood.gradient_norms(model, x, **options).values)
    return got.values


@pytest.mark.parametrize("label", ["all_hot", ["all_hot", "predicted"]])
def test_replays_follow_inputs_and_weights(captures, label):
    model = network()
    seen = []
    for seed in range(3):
        seen.append(same(model, batch(seed), label=label))
        with torch.no_grad():
            model.head.weight.mul_(1.5)
    assert len(captures) == 1 and not torch.equal(seen[0], seen[1])


def swap_function(model):
    model.act = torch.sigmoid


def swap_module(model):
    model.body[2] = nn.GELU()


def change_number(model):
    model.slope = 2.0


def change_in_containers(model):
    model.options["scale"][0] = 3.0


def change_closure(model):
    model.change(0.5)


def add_hook(model):
    model.conv.register_forward_hook(lambda module, args, out: out * 2)


def other_memory(model):
    model.head.weight.data = model.head.weight.data * 2


def change_buffer(model):
    model.norm.eps = 0.5


def replace_forward(model):
    model.body[2].forward = torch.tanh


CHANGES = (swap_function, swap_module, change_number, change_in_containers, change_closure)
CHANGES += (add_hook, other_memory, change_buffer, replace_forward)


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_replayed(captures, change):
    model = network()
    before = same(model, batch())
    change(model)
    assert not torch.allclose(same(model, batch()), before)
    assert len(captures) == 2


def test_a_new_object_at_an_old_address_is_another():
    same_as = cuda_graph.fingerprint.__globals__["Same"]

    class Thing:
        pass

    thing = Thing()
    key = same_as(thing)
    assert key == same_as(thing)
    number = id(thing)
    del thing
    for _ in range(50):
        other = Thing()
        if id(other) == number:
            assert key != same_as(other)
            break


def test_precision_and_switches_make_new_graphs(captures, monkeypatch):
    model = network()
    same(model, batch())
    same(model, batch(), precision="fast")
    assert len(captures) == 2
    with torch.backends.cudnn.flags(enabled=False):
        same(model, batch())
    assert len(captures) == 3
    same(model, batch(1))
    assert len(captures) == 3


def test_memory_is_checked_before_a_capture_and_not_before_a_replay(captures, monkeypatch):
    model = network()
    same(model, batch())
    monkeypatch.setattr(scorer, "memory_bound", lambda x: 1)
    gradood.gradient_norms(model, batch(1), cuda_graph=True)  # its memory is the graph's own
    with pytest.raises(InputError, match="exceed the memory bound"):
        gradood.gradient_norms(model, batch()[:3], cuda_graph=True)


def test_running_out_of_memory_is_called_so(captures, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scorer.Scorer, "whole", full)
    with pytest.raises(torch.OutOfMemoryError):
        gradood.gradient_norms(network(), batch(), cuda_graph=True)


def test_the_stream_of_a_capture_is_on_the_device_of_the_batch(captures):
    same(network(), batch())
    (stream,) = captures
    assert stream.device == torch.device("cpu")


def test_one_sample_is_captured_as_it_is(captures, monkeypatch):
    """The pair is a workaround for the CPU."""
    widths = []
    model = network()
    model.register_forward_pre_hook(lambda module, args: widths.append(len(args[0])))
    monkeypatch.setattr(scorer.Scorer, "pairs", scorer.Scorer.pairs)
    plan = gradood.gradients.plan.Plan()
    assert plan.pair_lone
    made = scorer.Scorer(model, None, {}, Norms())
    assert made.pairs(batch()[:1], plan)
    assert not made.pairs(batch()[:1].to("meta"), plan)


def test_threads_do_not_overwrite_one_anothers_input(captures):
    captured = cuda_graph.capture(lambda x: x * 2, torch.zeros(3))
    captured._graph.pause = 0.02
    wrong = []

    def run(number):
        for _ in range(5):
            if captured.replay(torch.full((3,), float(number))).tolist() != [2.0 * number] * 3:
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_replay_waits_for_the_copies_of_the_one_before(captures):
    captured = cuda_graph.capture(lambda x: x * 2, torch.zeros(3))
    stream = torch.cuda.current_stream()
    captured.replay(torch.ones(3))
    assert [kind for kind, event in stream.events if event is captured._copied] == [
        "wait",
        "record",
    ]


def test_detectors_score_by_graphs_inside_the_block(captures):
    """One graph for the shape that comes again; the last, smaller batch is scored as ever."""
    model, batches = network(), [batch(seed) for seed in range(4)]
    batches[-1] = batches[-1][:2]
    detector = gradood.GradUncertainty(model)
    wanted = [detector.score(x) for x in batches]
    assert not captures
    with cuda_graphs():
        got = [detector.score(x) for x in batches]
    assert len(captures) == 1
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
    detector.score(batches[0])
    assert len(captures) == 1


def test_what_no_graph_holds_is_scored_as_outside(captures, caplog):
    model, x = network(), batch()
    wanted = gradood.gradient_norms(model, x, label="k_hot:2").values
    with cuda_graphs(), caplog.at_level("INFO", "gradood"):
        for _ in range(3):
            got = gradood.gradient_norms(model, x, label="k_hot:2").values
            assert torch.equal(got, wanted)
        with pytest.raises(InputError, match="NaN"):
            gradood.gradient_norms(model, x * torch.nan)
    assert not captures
    assert [r.message.count("k_hot:2") for r in caplog.records if "no CUDA graph" in r.message] == [
        1
    ]
