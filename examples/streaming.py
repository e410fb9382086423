"""A network that answers frame by frame, keeps its state on disk, and says the same as at once.

`python examples/streaming.py`
"""

import torch
from torch import nn

import neurospike as ns


def main(path="state.pt"):
    """Return the scores of a sequence that came at once, by frames and in two sittings."""
    torch.manual_seed(0)
    net = ns.Sequential(nn.Linear(64, 256), ns.LIF(0.9), nn.Linear(256, 10), ns.LI(0.9)).eval()
    frames = torch.rand(300, 1, 64)  # one microphone, camera or robot: [T, B, *F]
    with torch.no_grad():
        at_once, _ = net(frames)
        state, by_frame = None, []
        for frame in frames[:200]:
            scores, state = net.step(frame, state)
            by_frame.append(scores)
        torch.save(state, path)
        in_chunks, _ = net(frames[200:], torch.load(path))  # where it stopped, 100 frames in a call
    return at_once, torch.cat([torch.stack(by_frame), in_chunks])


if __name__ == "__main__":
    at_once, streamed = main()
    print(f"largest difference from all at once: {(at_once - streamed).abs().max():.1e}")
