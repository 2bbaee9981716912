"""Pre-train vision encoders from image-caption pairs: contrastive learning and masked reconstruction in language space."""
__version__ = '0.1.0'

import os as _os, sys as _sys, time as _time
WAIT_VARIABLES = 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'  # what a waiting OpenMP thread does; read once, when torch is imported (nbs/training/30_machine.ipynb)

def _running():  # processes that want a core now, this one included; the least of a few looks, since many run for a moment only
    found = []
    for _ in range(4):
        with open('/proc/loadavg') as f: found.append(int(f.read().split()[3].partition('/')[0]))
        _time.sleep(0.003)
    return min(found)

def _polls(running=_running):  # how often a waiting thread looks before it sleeps: 30000 where each thread has a core of its own, 0 where not or where nobody knows
    try:
        cores = len(_os.sched_getaffinity(0))
        return 30_000 if running() - 1 + int(_os.environ.get('OMP_NUM_THREADS') or cores) <= cores else 0
    except (OSError, AttributeError, ValueError, IndexError): return 0

if 'torch' not in _sys.modules and not any(v in _os.environ for v in WAIT_VARIABLES): _os.environ.update(GOMP_SPINCOUNT=str(_polls()), KMP_BLOCKTIME='0')

from warnings import filterwarnings as _filterwarnings
_filterwarnings('ignore', 'IProgress not found')  # a notebook without ipywidgets shows lines in place of a bar (nbs/00_core.ipynb): nothing to warn of

_HOMES = dict(Config='config', recipe='config', fit='train', load='evals.libraries:load_model', open_source='data.readers', evaluate='evals.harness', search='plots.viz', export='exports')
__all__ = list(_HOMES)

def __getattr__(name):  # what takes seconds to import is imported when it is first used
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    module, _, home = _HOMES[name].partition(':')
    globals()[name] = value = getattr(import_module(f'{__name__}.{module}'), home or name)
    return value

def __dir__(): return [*globals(), *__all__]
