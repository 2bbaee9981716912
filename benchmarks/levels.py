"""What each level behind each column knows of the scenes: colour, shape and place, by linear probes (RevColV2's disentanglement).

    python benchmarks/levels.py runs/shapes_revcolv2                     # a table, and levels.png in the run's folder
    python benchmarks/levels.py runs/shapes_revcolv2 --n 500 --out /elsewhere/levels.png

Probes learn from --n scenes of the training split with one object each and are tested on 2,000 of the validation split.
"""
import argparse
from pathlib import Path

from rils_nb.core import command

@command
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', help='run or checkpoint folder of an encoder with columns')
    p.add_argument('--n', type=int, default=4000, help='scenes that the probes learn from (4000)')
    p.add_argument('--out', default='', help='picture (levels.png in the run folder)')
    args = p.parse_args()
    from rils_nb.evals.levels import probe_levels, show_levels
    from rils_nb.training.runs import load
    from rils_nb.data.scenes import Scenes
    from rils_nb.plots.viz import save_figure
    model = load(args.run)
    found = probe_levels(model, *(Scenes(split, n=n, objects=1, size=model.image_size) for split, n in (('train', args.n), ('val', 2000))))
    for question, share in found.items():
        print(f'{question}, % right; columns from left to right, 0 = the embedded image, the highest level first')
        for l in reversed(range(share.shape[1])): print(f'  level {l + 1}: ' + ' '.join(f'{100 * v:5.1f}' for v in share[:, l].tolist()))
    save_figure(show_levels(found, model.visual.trunk.ups), args.out or Path(args.run)/'levels.png')

if __name__ == '__main__': main()
