"""A network of one's own in the recogniser: a class, a row of the table, and all else comes along.

`DenseSNN` is trained by `python -m neurospike.train`'s own code from a configuration: encodings,
preprocessing, checkpoints, pictures and prediction are there without a line more.
`python examples/own_model.py`
"""

import sys
import tempfile

# --8<-- [start:model]
import torch
from torch import nn

from neurospike import train
from neurospike.models import SpikingNetwork, parts, register


class DenseSNN(SpikingNetwork):
    """Fully connected layers of which each sees the spikes of all before it (as in DenseNet)."""

    def __init__(
        self,
        input_size=784,
        hidden_size=64,
        output_size=10,
        *,
        num_steps=25,
        preprocessing=(),
        encoding="constant",
        encoding_options=None,
        readout="membrane",
        normalization="none",
        dropout=0.0,
        init="torch",
        **neuron,
    ):
        super().__init__(
            num_steps, preprocessing, encoding, encoding_options, readout, init, neuron
        )
        hidden = [hidden_size] if isinstance(hidden_size, int) else list(hidden_size)
        seen = [input_size, *(sum(hidden[:k]) for k in range(1, len(hidden)))]
        threshold = self._neuron.get("threshold", 1.0)
        self.layers = nn.ModuleList(
            nn.Sequential(
                self._initialized(nn.Linear(inputs, outputs), first=k == 0),
                parts.normalization(normalization, outputs, 1, threshold),
            )
            for k, (inputs, outputs) in enumerate(zip(seen, hidden))
        )
        self.dropout = parts.SpikeDropout(dropout)
        self.neurons = nn.ModuleList(self._neurons() for _ in hidden)
        self.last = self._initialized(nn.Linear(sum(hidden), output_size))
        self.output = self._output_neurons()

    def _answer(self, images):
        """Return the encoded input, the spikes of each layer, and the output's current."""
        encoded, first = self._enter(images.flatten(1), self.layers[0])
        spikes, _ = self.neurons[0](**first)
        activity, fired = {"hidden1": spikes}, [spikes]
        for k in range(1, len(self.layers)):
            before = self.dropout(torch.cat(fired, 2))
            spikes, _ = self.neurons[k](parts.over_steps(self.layers[k], before))
            fired.append(spikes)
            activity[f"hidden{k + 1}"] = spikes
        return encoded, activity, self.last(self.dropout(torch.cat(fired, 2)))


# --8<-- [end:model]

# --8<-- [start:row]
register("dense", DenseSNN, keys=("hidden_size",))
# --8<-- [end:row]


def main(run_dir, *flags):
    """Train it on the bundled digits; the command's exit code."""
    return train.main(
        [
            "--model.kind=dense",
            "--dataset=digits",
            "--epochs=10",
            "--hidden_size=64,64,64",
            "--encoding.kind=latency",
            f"--run_dir={run_dir}",
            *flags,
        ]
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        raise SystemExit(main(f"{folder}/run", *sys.argv[1:]))
