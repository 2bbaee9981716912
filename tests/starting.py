"""How tests start processes: one nursery for all of them. (No conftest.py: there is one at the top level, and Python knows modules by name.)"""
import atexit, json, os, subprocess, sys, tempfile
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENV = dict(os.environ, OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='1', PYTHONFAULTHANDLER='1')

class Nursery:
    "Starts training commands and groups of processes within a second; see nursery.py."
    def __init__(self, log):
        self.log = open(log, 'w')
        self.server = subprocess.Popen([sys.executable, HERE/'nursery.py'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=ENV)
    def begin(self, log, **job):
        "Start a job; its first process's number."
        self.server.stdin.write(json.dumps(dict(log=str(log), **job)) + '\n')
        self.server.stdin.flush()
        return int(self.server.stdout.readline())
    def start(self, argv, log, **job): return self.begin(log, argv=[str(a) for a in argv], **job)
    def wait(self): return int(self.server.stdout.readline())  # the exit code
    def run(self, argv, log, **job):
        "Exit code and output of a command."
        self.start(argv, log, **job)
        return self.wait(), log.read_text()
    def together(self, call, *args, log, ranks=2):
        "Call a function, module:name, in several processes of one group."
        self.begin(log, call=call, args=[str(a) for a in args], ranks=ranks)
        code = self.wait()
        assert code == 0, f'exit code {code}\n{log.read_text()}'

@cache
def the_nursery():
    n = Nursery(tempfile.mkstemp(suffix='.nursery')[1])
    atexit.register(lambda: (n.server.stdin.close(), n.server.wait()))
    return n

@pytest.fixture(scope='session')
def nursery(): return the_nursery()  # the same one in every module that imports this
