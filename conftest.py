"""Run every notebook under nbs/ as one pytest item.

The exported module is imported into the notebook's namespace, private names included; cells that export it are skipped; all other code cells run
in the notebook's own folder. So the tests in a notebook test the code that users import, and coverage sees it.

Each notebook runs in a process of its own, forked from a server that has the heavy imports behind it: nothing that a notebook sets, registers or
patches reaches another one. Two run at a time on two cores, beside the tests in files; their results come last. `--notebook-workers 0` runs them one
after another in pytest's own process, which is how to measure coverage: `coverage run --source rils_nb -m pytest --notebook-workers 0`.

A notebook whose first cell has the line `- slow: true` is marked slow. A single cell that begins with `#| slow` takes minutes (a real training): it
is left out unless asked for, `pytest --slow nbs/tutorials/your_own_pairs.ipynb`.

`--shift-seeds 7` adds 7 to every seed that a notebook sets: an assertion that fails then held for one draw of its data alone.

A cell that needs something from outside (a registry, a program) raises `unittest.SkipTest` where that is missing. The cells behind it that need
nothing of it still run; the notebook is reported as skipped, with the reason and how many cells were left out.
"""
import multiprocessing as mp, os, signal, sys, threading, time, traceback, unittest
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')  # notebooks run side by side; also what makes sums come out the same everywhere
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ['MPLBACKEND'] = 'Agg'  # for the commands that notebooks start

ROOT = Path(__file__).parent
HEAVY = ['torch', 'torchvision', 'timm', 'open_clip', 'accelerate', 'webdataset', 'sklearn.linear_model', 'matplotlib.pyplot', 'nbdev.showdoc']
LIMIT, SLOW_LIMIT = 1800, 7200  # seconds after which a notebook is stopped, without and with its slow cells

def pytest_addoption(parser):
    parser.addoption('--notebook-workers', type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
                     help="notebooks that run at a time, each in its own process; 0 = in pytest's process")
    parser.addoption('--shift-seeds', type=int, default=0, help='add this to the seeds that notebooks set: no assertion may hold for one seed alone')
    parser.addoption('--slow', action='store_true', help='run the cells that are marked `#| slow`, too')

def pytest_collect_file(file_path, parent):
    if file_path.suffix == '.ipynb' and file_path.name[0] not in '_.': return NotebookFile.from_parent(parent, path=file_path)

class NotebookFile(pytest.File):
    "A notebook; `nbs/data/06_readers.ipynb` is both file and test."
    def collect(self):
        from fastcore.nbio import nb_frontmatter, read_nb
        item = NotebookItem.from_parent(self, name=self.path.stem)
        if str(nb_frontmatter(read_nb(self.path)).get('slow', '')).lower() == 'true': item.add_marker('slow')
        yield item

class NotebookItem(pytest.Item):
    "All code cells of one notebook."
    seconds = None
    @property
    def is_slow(self): return self.get_closest_marker('slow') is not None
    def job(self): return str(self.path), not self.config.option.slow
    def runtest(self):
        self.seconds, error = self.session.stash[RUNS].result(self)
        if isinstance(error, Skipped): pytest.skip(error.why)
        if error: raise NotebookError(error)
    def repr_failure(self, excinfo):
        return str(excinfo.value) if excinfo.errisinstance(NotebookError) else super().repr_failure(excinfo)
    def reportinfo(self): return self.path, None, str(self.path.relative_to(self.config.rootpath))

class NotebookError(Exception): pass

class Skipped:
    "Something from outside was missing."
    def __init__(self, why): self.why = why

# One notebook

def shift_seeds(n):
    "Let data that a notebook makes, and the weights that it draws, come from other seeds."
    import random
    import numpy as np
    import torch
    for owner, name in ((torch, 'manual_seed'), (np.random, 'default_rng'), (np.random, 'seed'), (random, 'seed')):
        setattr(owner, name, lambda seed=None, given=getattr(owner, name): given(seed + n if isinstance(seed, int) else seed))

def run_notebook(path, skip_slow):
    "Run the tests of a notebook: what went wrong as text, `Skipped`, or None."
    from execnb.shell import CaptureShell
    from nbdev.processors import _default_exp
    from nbdev.test import nb_test_cells
    from fastcore.nbio import read_nb
    from importlib import import_module
    folder, before = Path(path).parent, os.getcwd()
    os.chdir(folder)
    if n := int(os.environ.get('RILS_NB_SHIFT_SEEDS', 0)): shift_seeds(n)
    sys.path[:0] = [str(ROOT), str(folder)]
    shell, missing, left_out = CaptureShell(mpl_format='png'), '', 0
    try:
        if name := _default_exp(read_nb(path)):
            shell.user_ns.update({k: v for k, v in vars(import_module(f'rils_nb.{name}')).items() if not k.startswith('__')})
        for cell in nb_test_cells(path, ['slow'] if skip_slow else []):
            if any(d.startswith('export') for d in cell.directives): continue
            outputs = shell.run(cell.source)
            if isinstance(shell.exc, unittest.SkipTest): missing = missing or str(shell.exc)
            if isinstance(shell.exc, (unittest.SkipTest, NameError, FileNotFoundError) if missing else unittest.SkipTest): left_out += 1  # a name or file of a cell before
            elif shell.exc: return describe(path, cell, shell.exc, outputs)
        if missing: return Skipped(f'{missing} ({left_out} cells of {short(path)} that need it were not run, the others passed)')
    finally:
        shell.close()
        os.chdir(before)
        for p in (str(ROOT), str(folder)): sys.path.remove(p)

def describe(path, cell, exc, outputs):
    "The error, the cell with its failing line marked, what it printed, and the traceback from the cell on."
    tb = exc.__traceback__
    while tb and '<ipython-input' not in tb.tb_frame.f_code.co_filename: tb = tb.tb_next
    line = tb.tb_lineno if tb else getattr(exc, 'lineno', None)
    source = '\n'.join(f'{">" if n == line else " "} {n:3} | {text}' for n, text in enumerate(cell.source.splitlines(), 1))
    printed = ''.join(''.join(o['text']) for o in outputs if o['output_type'] == 'stream')[-2000:]
    what = traceback.format_exception_only(exc)[-1].strip().splitlines()[0]
    trace = ''.join(traceback.format_exception(exc.with_traceback(tb)) if tb else traceback.format_exception_only(exc)).rstrip()
    return f'{what}\n{short(path)}, cell {cell.idx_ + 1} (id {cell.id}):\n\n{source}\n\n' + (f'printed:\n{printed}\n' if printed else '') + trace

def short(path): return os.path.relpath(path, ROOT)

# Many notebooks

def child(pipe, path, skip_slow):
    "What a notebook's process does."
    os.setsid()  # so that whatever the notebook starts is stopped with it
    try: error = run_notebook(path, skip_slow)
    except BaseException as e: error = f'{type(e).__name__}: {e}\n{short(path)}:\n\n{traceback.format_exc()}'
    sys.stdout.flush()
    pipe.send(error)

def in_own_process(context, alive, closed, path, skip_slow):
    "Run a notebook in a process: seconds and what went wrong."
    start = time.time()
    ours, theirs = context.Pipe(duplex=False)
    p = context.Process(target=child, args=(theirs, path, skip_slow))
    p.start()
    alive.add(p.pid)
    if closed.is_set(): stop(p.pid)
    theirs.close()
    limit = LIMIT if skip_slow else SLOW_LIMIT
    try: error = ours.recv() if ours.poll(limit) else f'{short(path)}: still running after {limit} s, stopped'
    except EOFError:
        p.join()
        error = f'{short(path)}: its process ended with exit code {p.exitcode}'
    stop(p.pid)
    p.join()
    alive.discard(p.pid)
    return time.time() - start, error

def stop(pid):
    "End a notebook's process and all that it started."
    for kill in (os.killpg, os.kill):  # it is its own group's leader, once it got so far
        try: kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError): pass

def run_all(pipe, jobs, n):
    """Run notebooks, n at a time, and send the results as they come. This is a process of its own, since the tests in files run meanwhile in pytest's:
    what they do to its folder and its environment reaches no notebook."""
    context, alive, closed = mp.get_context('spawn' if sys.platform == 'darwin' else 'forkserver'), set(), threading.Event()
    if sys.platform != 'darwin': context.set_forkserver_preload(HEAVY)
    def end(*_):
        closed.set()
        for _ in range(2):  # the second time for what was just being started
            for pid in list(alive): stop(pid)
            time.sleep(0.2)
        os._exit(1)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, lambda *_: None)  # pytest gets the Ctrl-C, too, and ends this process
    with ThreadPoolExecutor(n) as pool:
        futures = {pool.submit(in_own_process, context, alive, closed, *job): k for k, job in enumerate(jobs)}
        for f in as_completed(futures): pipe.send((futures[f], *f.result()))

RUNS = pytest.StashKey()

class Runs:
    "The runs of a session's notebooks: started with the session, slow ones first."
    def __init__(self, session): self.session, self.process, self.found = session, None, {}
    def start(self):
        n = self.session.config.option.notebook_workers
        self.items = sorted((i for i in self.session.items if isinstance(i, NotebookItem)), key=lambda i: not i.is_slow)
        if not n or not self.items: return
        self.pipe, theirs = mp.Pipe(duplex=False)
        self.process = mp.get_context('spawn').Process(target=run_all, args=(theirs, [i.job() for i in self.items], n))
        self.process.start()
        theirs.close()
    def result(self, item):  # -> seconds, and what went wrong
        if not self.process:
            start = time.time()
            return time.time() - start, run_notebook(*item.job())
        try:
            while item not in self.found:
                k, *found = self.pipe.recv()
                self.found[self.items[k]] = found
        except EOFError: return 0., 'the process that runs the notebooks has ended'
        return self.found[item]
    def close(self):
        if not self.process: return
        if len(self.found) < len(self.items): self.process.terminate()
        self.process.join()

def pytest_sessionstart(session):
    if not session.config.option.slow: os.environ['RILS_NB_BRIEF'] = '1'  # notebooks may make less of their data
    if n := session.config.option.shift_seeds: os.environ['RILS_NB_SHIFT_SEEDS'] = str(n)  # read by each notebook's process
    session.stash[RUNS] = Runs(session)
def pytest_collection_modifyitems(items): items.sort(key=lambda i: isinstance(i, NotebookItem))  # notebooks last: they run in the background from the start
def pytest_runtestloop(session):
    if not session.config.option.collectonly: session.stash[RUNS].start()
def pytest_sessionfinish(session): session.stash[RUNS].close()

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if call.when == 'call' and getattr(item, 'seconds', None): report.duration = item.seconds  # its own time, not the time that pytest waited
