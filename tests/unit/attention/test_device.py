"""What the read-out and the reduction would ask of a GPU, counted on a device that is not there."""

import dataclasses

import pytest
import torch
from pretend_device import DeviceMismatch, pretend

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.gradient_rows import GradientReading
from realad_verl.attention.precision import full_precision
from realad_verl.attention.readout import AttentionReadout, Reading, RowRequest
from realad_verl.method.config import MethodConfig

HEADS, GROUPS, WIDTH, LAYERS = 4, 2, 16, 3


class Layers:
    """A reading over kernel calls that are made up here: what a forward of so many layers would report."""

    def __init__(self, kind: str, samples: int) -> None:
        from attention_models import causal_model

        self.kind, self.samples, self.length = kind, samples, 40
        model = causal_model(num_hidden_layers=LAYERS)
        self.readout = AttentionReadout(model, kernel="torch")

    def requests(self) -> list[RowRequest]:
        places = [(0, i * self.length) if self.kind == "packed" else (i, 0) for i in range(self.samples)]
        return [
            RowRequest(row, offset, self.length - i, torch.arange(30, 38 - i), torch.arange(2, 20 + i))
            for i, (row, offset) in enumerate(places)
        ]

    def call(self, mask: torch.Tensor | None) -> KernelCall:
        packed = self.kind == "packed"
        batch, tokens = (1, self.samples * self.length) if packed else (self.samples, self.length)
        query, key = torch.randn(batch, HEADS, tokens, WIDTH), torch.randn(batch, GROUPS, tokens, WIDTH)
        bounds = torch.arange(0, tokens + 1, self.length, dtype=torch.int32)
        return KernelCall(
            query.bfloat16().to("cuda"),
            key.bfloat16().to("cuda"),
            scale=0.2,
            causal=mask is None,
            mask=mask,
            window=(15, 0) if self.kind == "window" else (-1, -1),
            sink_H=torch.zeros(HEADS).to("cuda") if self.kind == "sinks" else None,
            cu_seqlens=bounds.to("cuda") if packed else None,
        )

    def mask(self) -> torch.Tensor | None:
        if self.kind not in ("mask", "additive"):
            return None
        visible = torch.ones(self.samples, 1, self.length, self.length).tril().bool()
        made = visible if self.kind == "mask" else torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
        return made.to("cuda")

    def run(self, counts, by_layer: list) -> Reading:
        reading = Reading(self.readout, self.requests(), None)
        mask = self.mask()
        for layer in range(LAYERS):
            reading._layer = layer
            call = self.call(mask)
            before = counts.launches.total(), counts.waits.total()
            reading.saw(call)
            by_layer.append((counts.launches.total() - before[0], counts.waits.total() - before[1]))
        return reading


KINDS = ["packed", "dense", "mask", "additive", "window", "sinks"]


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dozen_launches_a_layer_and_no_wait_after_the_first(kind, samples):
    by_layer = []
    with pretend() as counts:
        rows = Layers(kind, samples).run(counts, by_layer).rows()
        assert all(row.device.type == "cuda" for row in rows)
        assert sum(row.to("cpu").sum().item() for row in rows) > 0
    assert by_layer[0][0] <= 34 and by_layer[0][1] <= 4  # three tensors are moved, a pack's boundaries are asked for
    for launches, waits in by_layer[1:]:
        assert launches <= (17 if kind == "sinks" else 12)
        assert waits == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sinks"])
def test_rows_with_a_gradient_launch_as_many_kernels_whatever_the_samples_and_wait_for_nothing_after_the_first(kind):
    by_samples = {}
    for samples in (1, 8):
        by_layer = []
        with pretend() as counts:
            layers = Layers(kind, samples)
            requests = [dataclasses.replace(request, columns=torch.arange(2, 20)) for request in layers.requests()]
            reading = GradientReading(layers.readout, requests, None, None, False)
            mask = layers.mask()
            for layer in range(LAYERS):
                reading._layer = layer
                reading.saw(layers.call(mask))
            with full_precision("cpu"):
                while reading._calls:
                    before = counts.launches.total(), counts.waits.total()
                    reading._layers.append(reading._layer_rows(*reading._calls.pop(0)))
                    by_layer.append((counts.launches.total() - before[0], counts.waits.total() - before[1]))
        assert by_layer[1] == by_layer[2]
        by_samples[samples] = by_layer[1]
    assert by_samples[8][0] <= 28 and by_samples[8][0] - by_samples[1][0] <= 1
    assert by_samples[8][1] == by_samples[1][1] == 0


def test_rows_on_the_device_are_those_of_the_cpu():
    torch.manual_seed(0)
    with pretend() as counts:
        there = [row.to("cpu") for row in Layers("packed", 3).run(counts, []).rows()]
    torch.manual_seed(0)
    layers = Layers("packed", 3)
    layers.call = lambda mask, call=layers.call: _on_cpu(call(mask))
    with pretend() as counts:
        here = layers.run(counts, []).rows()
    assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))


def _on_cpu(call: KernelCall) -> KernelCall:
    from dataclasses import replace

    return replace(
        call,
        query_BHND=call.query_BHND.to("cpu"),
        key_BGND=call.key_BGND.to("cpu"),
        cu_seqlens=call.cu_seqlens.to("cpu"),
    )


def test_a_mix_of_devices_raises():
    with pretend(), pytest.raises(DeviceMismatch, match="aten::add"):
        torch.ones(2).to("cuda") + torch.ones(2)


@pytest.mark.parametrize("detail", [False, True])
def test_the_reduction_waits_once_a_micro_batch(detail):
    from realad_verl.backbones.layout import ImageLayout
    from realad_verl.evidence import EvidenceBuilder, EvidencePlan
    from realad_verl.verl_ext.train import wire

    builder = EvidenceBuilder.__new__(EvidenceBuilder)
    builder.cfg, builder.baseline = MethodConfig(), None
    plans, rows = [], []
    for i in range(8):
        columns = torch.arange(25)
        layout = ImageLayout(columns=columns, grid=(5, 5))
        request = RowRequest(0, 0, 60, torch.arange(30, 40 + i), torch.arange(27))
        plans.append(EvidencePlan(request, layout, 2, list(range(10 + i)), None, torch.arange(10 + i)))
        rows.append(torch.rand(10 + i, 27, generator=torch.Generator().manual_seed(i)))
    want = builder.reduce(plans, rows)
    with pretend() as counts:
        moved = [row.to("cuda") for row in rows]
        before = counts.waits.total()
        got = builder.reduce(plans, moved)
        vectors = [wire.pack_summary(evidence, 1.0) for evidence in got]
        if detail:
            vectors += [x for e, p in zip(got, plans, strict=True) for x in wire.pack_detail(e, p.reasoning).values()]
        assert counts.waits.total() - before <= 3
        assert all(vector.device.type == "cpu" for vector in vectors)
    assert [evidence.jaccard for evidence in got] == [evidence.jaccard for evidence in want]
    assert all(torch.equal(a.anomaly_map_P, b.anomaly_map_P) for a, b in zip(got, want, strict=True))
