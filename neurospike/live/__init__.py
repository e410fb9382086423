"""The live page: draw a digit and watch the neurons answer it, or watch a training run.

`python -m neurospike.live --help`. `answering.py` runs the network and packs what happened,
`watching.py` follows a run's records, neither knows of a page; `page.py` is the page, of the parts
in `parts.py` and their halves in the browser, `pad.js`, `stage.js` and `style.css`.
"""
