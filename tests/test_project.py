"""What no notebook can hold about itself: the export, the order of the modules, the pages, the metadata, the state of the files."""
import ast, configparser, importlib.metadata, inspect, json, os, re, shlex, shutil, subprocess, sys, tomllib
from importlib import import_module
from pathlib import Path

import pytest
from fastcore.docments import docments
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export
from nbdev.quarto import refresh_quarto_yml

import pages

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('[!_.]*.ipynb') if not any(part[0] in '_.' for part in p.relative_to(ROOT).parts))
SETTINGS = configparser.ConfigParser(delimiters=['='], interpolation=None)
SETTINGS.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = SETTINGS['DEFAULT']

def name_of(nb): return nb.relative_to(ROOT/'nbs').as_posix()

def python_files(): return sorted((ROOT/'rils_nb').rglob('*.py'))

def tracked():
    "Files of the repository, new ones that are not ignored included."
    names = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    return [ROOT/n for n in names if n and (ROOT/n).is_file()]

# The export

@pytest.fixture
def copy(tmp_path, monkeypatch):
    "The notebooks and the settings without any exported module."
    for p in [*NOTEBOOKS, ROOT/'pyproject.toml', *(ROOT/'rils_nb').rglob('__init__.py')]:
        to = tmp_path/p.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, to)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('IN_TEST', raising=False)
    return tmp_path

def test_export_is_in_step(copy):
    nbdev_export()
    refresh_quarto_yml()
    made = {p.relative_to(copy) for p in [*(copy/'rils_nb').rglob('*.py'), *(copy/'nbs').glob('*.yml'), *(copy/'nbs').glob('llms.txt')]} - {
        Path('nbs/_quarto.yml')}  # our own, kept at the top level
    here = {p.relative_to(ROOT) for p in python_files()}
    stale = [str(p) for p in sorted(made | here) if p not in made or not (ROOT/p).exists() or (copy/p).read_bytes() != (ROOT/p).read_bytes()]
    assert not stale, f'run nbdev-export: {stale}'

def test_notebooks_are_clean(copy):
    nbdev_clean(str(copy/'nbs'))
    dirty = [name_of(p) for p in NOTEBOOKS if p.read_bytes() != (copy/p.relative_to(ROOT)).read_bytes()]
    assert not dirty, f'run nbdev-clean: {dirty}'

# The order of the modules

def module_of(nb):
    "The module that a notebook exports, or None."
    for cell in read_nb(nb).cells:
        if name := cell.directive('default_exp'): return f'rils_nb.{name}'

def imports_of(source, package):
    "Modules of rils_nb that a source imports, inside functions too."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package.split('.')[:len(package.split('.')) + 1 - node.level]) if node.level else ''
            module = '.'.join(filter(None, [base, node.module]))
            yield module
            yield from (f'{module}.{a.name}' for a in node.names)

def code_of(nb):
    "All code of a notebook but magics and shell lines."
    cells = [c.source for c in read_nb(nb).cells if c.cell_type == 'code' and not c.source.lstrip().startswith('%%')]
    return '\n'.join(re.sub(r'^(\s*)[!%].*$', r'\1pass', s, flags=re.M) for s in cells)

def number_of(nb): return m[0] if (m := re.match("[0-9]{2}[a-z]?(?=_)", nb.name)) else None  # as text: 05 < 05a < 06

def modules():  # -> dict: module -> (number, names of modules that its notebook's exported code imports)
    "The import graph, from the notebooks."
    books = {module_of(nb): nb for nb in NOTEBOOKS if module_of(nb)}
    def exported(nb): return '\n'.join(c.source for c in read_nb(nb).cells if c.cell_type == 'code' and c.directive('export') is not None)
    return {m: (number_of(nb), {i for i in imports_of(exported(nb), 'rils_nb') if i in books and i != m}) for m, nb in books.items()}

def test_arrows_only_run_down():
    "Each module has a number of its own and imports only what has a lower one. `pytest -s` prints the graph."
    graph = modules()
    numbers = [n for n, _ in graph.values()]
    assert None not in numbers and len(set(numbers)) == len(numbers), sorted(graph.items(), key=lambda m: str(m[1][0]))
    print()
    for m, (n, needs) in sorted(graph.items(), key=lambda m: m[1][0]):
        lines = len((ROOT/(m.replace('.', '/') + '.py')).read_text(encoding='utf-8').splitlines())
        print(f'{n:3} {m.removeprefix("rils_nb."):18} {lines:4} lines   ' + ' '.join(sorted(i.removeprefix('rils_nb.') for i in needs)))
        assert lines <= 320, f'{m} has {lines} lines: which of its subjects should move out?'
    up = [f'{m} ({n}) imports {i} ({graph[i][0]})' for m, (n, needs) in graph.items() for i in needs if graph[i][0] > n]
    assert not up, '\n'.join(up)

def test_a_notebook_tests_with_what_stands_before_it():
    books = {module_of(nb): nb for nb in NOTEBOOKS if module_of(nb)}
    up = [f'{name_of(nb)} imports {i}' for m, nb in books.items() for i in set(imports_of(code_of(nb), 'rils_nb')) if i in books and number_of(books[i]) > number_of(nb)]
    assert not up, '\n'.join(up)

def test_no_module_imports_itself_in_a_circle():
    name = lambda p: '.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
    files = {name(p): p for p in python_files() if p.name != '_modidx.py'}
    package = lambda m: m if files[m].name == '__init__.py' else m.rpartition('.')[0]
    needs = {m: {i for i in imports_of(p.read_text(encoding='utf-8'), package(m)) if i in files and i != m and files[i].name != '__init__.py'}
             for m, p in files.items()}
    assert needs['rils_nb.config'] == {'rils_nb.core'}  # the reading of relative imports works
    while free := {m for m in needs if not needs[m] & needs.keys()}:
        for m in free: del needs[m]
    while idle := {m for m in needs if not any(m in n for n in needs.values())}:  # what only leads into the circle
        for m in idle: del needs[m]
    assert not needs, f'a circle among {sorted(needs)}'

# The pages

def test_readme_and_sidebar_are_in_step():
    assert (ROOT/'README.md').read_text(encoding='utf-8') == pages.readme(read_nb(ROOT/'nbs'/'index.ipynb')), 'run: python tests/pages.py'
    assert (ROOT/'nbs'/'sidebar.yml').read_text(encoding='utf-8') == pages.sidebar(ROOT/'nbs'), 'run: python tests/pages.py'

def test_tables_are_in_step():
    "What the site shows of fields, options and recipes is what they are now."
    found = [(name_of(p), ''.join(cell.outputs[0].data['text/markdown']) == table) for p in NOTEBOOKS for cell, table in pages.tables(read_nb(p))]
    assert len(found) > 2 and all(same for _, same in found), f'run: python tests/pages.py ({found})'

def test_cells_that_print_hold_what_they_printed():
    "The site shows what stands in the notebooks; it runs nothing."
    def prints(cell):
        top = [n for n in ast.parse(cell.source).body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))] if cell.source[:1] not in '!%' else []
        return any(isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'print' for t in top for n in ast.walk(t))
    silent = [f'{name_of(p)}: {c.source[:60]!r}' for p in NOTEBOOKS for c in read_nb(p).cells if c.cell_type == 'code'
              and not c.directive('hide') and not c.directive('export') and prints(c) and not c.outputs]
    assert not silent, 'run nbdev-test --save on:\n' + '\n'.join(silent)

def test_readme_links_lead_somewhere():
    links = re.findall(r'(?:\]\(|(?:src|href)=")(?![a-z]+:|#)([^)"#\s]+)', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert not [p for p in links if not (ROOT/p).exists()]

def links_of(nb):
    "Relative links and pictures in the prose of a notebook."
    prose = '\n'.join(c.source for c in read_nb(nb).cells if c.cell_type == 'markdown')
    prose = re.sub(r'^```.*?^```|`[^`\n]*`', '', prose, flags=re.S | re.M)  # what looks like a link in code is none
    return re.findall(r'(?:\]\(|(?:src|href)=")(?![a-z]+:|#)([^)"#\s]+)', prose)

def test_links_of_notebooks_lead_somewhere():
    "A notebook that is renamed takes its links along."
    links = {(nb, link) for nb in NOTEBOOKS for link in links_of(nb)}
    assert len(links) > 30  # they are found
    dead = {f'{name_of(nb)}: {link}' for nb, link in links if not (nb.parent/link).exists()}
    assert not dead, '\n'.join(sorted(dead))

@pytest.mark.slow
def test_the_readme_runs_in_python(tmp_path):
    "The ten lines for a notebook, with three steps in place of 300."
    lines, = re.findall(r'```python\n(.*?)```', (ROOT/'README.md').read_text(encoding='utf-8'), flags=re.S)
    shutil.copy(ROOT/'nbs'/'images'/'learned.png', tmp_path/'cat.jpg')  # whatever the suffix says
    out = subprocess.run([sys.executable, '-c', lines.replace('steps=300', "steps=3, batch=16, tasks='', precision='float32'")], cwd=tmp_path, capture_output=True, text=True,
                         env=dict(os.environ, PYTHONPATH=str(ROOT)), timeout=900)
    assert out.returncode == 0 and (tmp_path/'exported'/'model.safetensors').exists(), out.stderr

def test_readme_commands_are_those_that_ci_runs():
    readme, ci = (ROOT/'README.md').read_text(encoding='utf-8'), (ROOT/'.ci'/'run').read_text(encoding='utf-8')
    install = re.search(r"pip install -e '\S+'", readme)
    assert install and install[0] in ci and install[0] in (ROOT/'.github'/'workflows'/'test.yml').read_text(encoding='utf-8')
    assert re.search(r'^pytest$', readme, flags=re.M) and re.search(r'^pytest "\$@"$', ci, flags=re.M)

def written_commands():
    "The commands in prose, docstrings and benchmarks, as lists of words; those with gaps (`...`, `[RECIPE]`) are left out."
    texts = [(name_of(p), c.source) for p in NOTEBOOKS for c in read_nb(p).cells] + [(p.name, p.read_text(encoding='utf-8')) for p in (ROOT/'benchmarks').glob('*.py')]
    command = r'(?:^ *|`|&& )((?:accelerate launch [^`\n]*-m rils_nb\.train|rils-(?:train|data|eval|export)) [^`\n]*)'
    for where, text in texts:
        for line in re.findall(command, re.sub(r'\\\n\s*', ' ', text), flags=re.M):
            for part in re.sub(r'\s+#.*', '', line).split('&&'):
                words = shlex.split(re.sub(r'\b[SN]\b(?= |$)', '2', part))
                if words[0] == 'accelerate': words[:words.index('rils_nb.train') + 1] = ['rils-train']
                if not re.search(r'\.\.\.|\[|METHOD|--help', part) and (words[0] == 'rils-train' or len(words) > 3): yield where, words

def test_written_commands_can_be_typed(tmp_path, monkeypatch):
    "Each command that a page shows: its arguments are understood, its options are the method's, and weights of open_clip are given an encoder that they fit."
    from rils_nb import commands, config, methods
    from rils_nb.core import UserError
    methods.import_methods()
    monkeypatch.chdir(tmp_path)
    (tmp_path/'runs'/'shapes').mkdir(parents=True)
    (tmp_path/'runs'/'shapes'/'config.json').write_text(config.to_json(config.recipe()))
    wrong, found = [], list(written_commands())
    for where, (command, *argv) in found:
        try:
            if command == 'rils-train':
                c = config.parse(argv)
                if c.method in methods.METHODS: config.parse_opts(c.opts, methods.method_options(methods.METHODS[c.method]))  # or it is a page's own
                if ('-clip' in c.size or '-quickgelu' in c.size) != c.init.startswith('open_clip:'): raise UserError(f'--size {c.size} --init {c.init}')
            elif command == 'rils-data': commands.data_parser().parse_args(argv)
            elif command == 'rils-export': commands.export_parser().parse_args(argv)
            elif argv[0] == 'report': commands.report_parser().parse_args(argv[1:])
            elif not argv[0].startswith('-'): commands.parse_eval(argv)
        except UserError as e: wrong.append(f'{where}: {command} {shlex.join(argv)}: {e}')
    assert len(found) > 100 and not wrong, '\n'.join(wrong)

def test_the_first_cell_is_title_and_why():
    "The site makes its head from this cell and shows nothing else of it: a paragraph there would be lost."
    wrong = []
    for nb in NOTEBOOKS:
        lines = [line for line in read_nb(nb).cells[0].source.splitlines() if line.strip()]
        if not (len(lines) > 1 and lines[0].startswith('# ') and all(line.startswith('> ') or re.match(r'- \w+: ', line) for line in lines[1:])):
            wrong.append(name_of(nb))
    assert not wrong, f'the first cell is `# Title` and `> why`, the rest goes into the next one: {wrong}'

@pytest.mark.slow
def test_the_site_can_be_made_up_to_quarto(copy):
    "Docs execute only cells with exports or imports, so a cell that imports and then uses a test's variable breaks them."
    for p in (ROOT/'nbs').glob('*.yml'): shutil.copy(p, copy/'nbs'/p.name)
    shutil.copytree(ROOT/'rils_nb', copy/'rils_nb', dirs_exist_ok=True)
    code = 'from nbdev.serve import proc_nbs\nif __name__ == "__main__": proc_nbs(n_workers=2)'
    (copy/'make.py').write_text(code)
    out = subprocess.run([sys.executable, 'make.py'], cwd=copy, capture_output=True, text=True, timeout=900)
    assert out.returncode == 0, out.stderr.rpartition('Exception: ')[2] or out.stderr
    assert 'imports and other code' not in out.stderr, out.stderr
    made = {p.relative_to(copy/'_proc').as_posix() for p in (copy/'_proc').rglob('*.ipynb')}
    assert made == {name_of(p) for p in NOTEBOOKS}

# The metadata

def test_settings_pyproject_and_init_agree():
    project = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']
    assert (project['name'], project['description']) == (SETTINGS['lib_name'], SETTINGS['description'])
    assert import_module('rils_nb').__version__ == SETTINGS['version']
    assert not {'dependencies', 'requires-python', 'optional-dependencies', 'scripts', 'entry-points', 'keywords'} - set(project['dynamic'])
    assert project['urls'].keys() >= {'Repository', 'Documentation'}
    assert re.search(rf'^## {re.escape(SETTINGS["version"])}\b', (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), flags=re.M)

def test_commands_exist():
    for entry in SETTINGS['console_scripts'].split():
        module, _, function = entry.partition('=')[2].partition(':')
        assert callable(getattr(import_module(module), function, None)), entry

def dist_name(requirement): return re.match(r'[\w.-]+', requirement)[0].lower().replace('_', '-')

def test_what_is_imported_is_required_and_the_other_way_round():
    provides = importlib.metadata.packages_distributions()
    def dists(source): return {dist_name(d) for m in imports_of(source, 'rils_nb') for d in provides.get(m.partition('.')[0], [])}
    library = set().union(*(dists(p.read_text(encoding='utf-8')) for p in python_files()))
    around = set().union(*map(dists, map(code_of, NOTEBOOKS)), *(dists(p.read_text(encoding='utf-8')) for p in tracked() if p.suffix == '.py'))
    needed, for_dev = ({dist_name(r) for r in SETTINGS[k].split()} for k in ('requirements', 'dev_requirements'))
    own, by_name = {'rils-nb'}, {'tensorboard'}  # by_name: imported by a library at the user's word
    wrong = {'imported by rils_nb, not in requirements': library - needed - own,
             'imported by notebooks or tests, not in requirements or dev_requirements': around - needed - for_dev - own - {'execnb', 'setuptools'},
             'in requirements, not imported by rils_nb': needed - library,
             'in dev_requirements, not imported by notebooks or tests': for_dev - around - by_name}
    assert not any(wrong.values()), wrong

# The code

OBVIOUS = {'self', 'cls', 'config', 'path', 'text', 'name', 'seed', 'args', 'kwargs'}  # parameters whose name says it all

def public(module):
    "Public functions and classes that a module defines."
    for name in getattr(module, '__all__', []):
        obj = getattr(module, name)
        if (inspect.isfunction(obj) or inspect.isclass(obj)) and obj.__module__ == module.__name__: yield name, obj

def test_public_functions_are_explained():
    wrong = []
    for path in python_files():
        if path.name.startswith('_'): continue
        module = import_module('.'.join(path.relative_to(ROOT).with_suffix('').parts))
        for name, obj in public(module):
            if not (obj.__doc__ or '').strip() or obj.__doc__.startswith(f'{name}('): wrong.append(f'{module.__name__}.{name}: no docstring')
            if inspect.isfunction(obj):
                words = docments(obj)
                lacks = [p for p in inspect.signature(obj).parameters if p not in OBVIOUS and not words.get(p)]
                if lacks: wrong.append(f'{module.__name__}.{name}: no comment for {", ".join(lacks)}')
    assert not wrong, '\n'.join(wrong)

# The files

def test_stored_outputs_are_small():
    size = sum(len(json.dumps(c.get('outputs', []))) for nb in NOTEBOOKS for c in json.loads(nb.read_text(encoding='utf-8'))['cells'])
    assert size < 1_500_000, f'stored outputs take {size / 1e6:.2f} MB'

def test_no_names_of_this_machine():
    "No absolute path of somebody's machine and no package registry's host."
    folders = '|'.join(['work', 'tmp', 'root', 'home', 'Users'])
    path = re.compile(rf'(?<![\w.~/:-])/(?:{folders})/[\w.]')
    hosts = ['py' + 'pi.org', 'pythonhosted' + '.org', 'registry.' + 'npmjs', 'deb.' + 'debian']
    mirrors = filter(None, map(os.environ.get, ('PIP_INDEX_URL', 'UV_INDEX_URL')))
    hosts += [re.sub(r'^\w+://([^@/]*@)?', '', url).split('/')[0] for url in mirrors]
    wrong = []
    for p in tracked():
        try: text = p.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue  # a picture
        wrong += [f'{p.relative_to(ROOT)}: {m[0]}' for m in path.finditer(text)] + [f'{p.relative_to(ROOT)}: {h}' for h in hosts if h in text]
    assert not wrong, '\n'.join(wrong)

# The runner of the notebooks

def run_pytest(folder, *args):
    "Run pytest with our conftest.py on the notebooks of a folder."
    shutil.copy(ROOT/'conftest.py', folder)
    (folder/'pyproject.toml').write_text((ROOT/'pyproject.toml').read_text(encoding='utf-8'), encoding='utf-8')
    (folder/'tests').mkdir(exist_ok=True)
    return subprocess.run([sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', *args], cwd=folder, capture_output=True, text=True, timeout=900)

def notebook(path, *sources):
    path.parent.mkdir(exist_ok=True)
    write_nb(new_nb([mk_cell(s, 'markdown' if s.startswith('# ') else 'code') for s in sources]), path)

def test_runner_tells_which_cell_failed_and_why(tmp_path):
    notebook(tmp_path/'nbs'/'00_a.ipynb', '# A\n\n> why', 'x = 1', '#| hide\nprint("seen")\nassert x == 2, "x is off"')
    out = run_pytest(tmp_path, '--notebook-workers', '0')
    assert out.returncode == 1, out.stdout + out.stderr
    for words in ('FAILED nbs/00_a.ipynb::00_a - AssertionError: x is off', 'nbs/00_a.ipynb, cell 3', '>   3 | assert x == 2', 'seen', '1 failed'):
        assert words in out.stdout, out.stdout

@pytest.mark.parametrize('workers', ['0', '1'])
def test_runner_skips_what_needs_something_from_outside(tmp_path, workers):
    notebook(tmp_path/'nbs'/'00_a.ipynb', '# A\n\n> why', 'import unittest\nraise unittest.SkipTest("npm is not installed")\nfetched = 1', 'assert fetched == 1', 'open("ran", "w").close()')
    out = run_pytest(tmp_path, '--notebook-workers', workers)
    assert out.returncode == 0 and '1 skipped' in out.stdout.splitlines()[-1], out.stdout + out.stderr
    assert 'npm is not installed (2 cells of nbs/00_a.ipynb that need it were not run, the others passed)' in out.stdout and (tmp_path/'nbs'/'ran').exists()
    notebook(tmp_path/'nbs'/'00_a.ipynb', '# A\n\n> why', 'import unittest\nraise unittest.SkipTest("npm")', 'assert False, "and yet"')
    assert '1 failed' in run_pytest(tmp_path, '--notebook-workers', workers).stdout

def test_runner_runs_the_right_cells_in_the_right_place(tmp_path):
    (tmp_path/'rils_nb').mkdir()
    (tmp_path/'rils_nb'/'__init__.py').touch()
    (tmp_path/'rils_nb'/'mod.py').write_text('_private = 5\ndef f(): return "exported"\n')
    notebook(tmp_path/'nbs'/'00_mod.ipynb', '# Mod\n\n> why', '#| default_exp mod', '#| export\ndef f(): return "copy"',
             'assert f() == "exported" and _private == 5', '#| eval: false\n1/0',
             '#| slow\nopen("slow_cell", "w").close()', 'open("ran", "w").close()')
    notebook(tmp_path/'nbs'/'01_slow.ipynb', '# Slow\n\n> why\n\n- slow: true', 'assert "f" not in globals()\nopen("slow_notebook", "w").close()')
    there = lambda: {p.name for p in (tmp_path/'nbs').iterdir()} - {'00_mod.ipynb', '01_slow.ipynb'}
    out = run_pytest(tmp_path, '--notebook-workers', '0', '-m', 'not slow')
    assert out.returncode == 0 and '1 passed, 1 deselected' in out.stdout, out.stdout + out.stderr
    assert there() == {'ran'}
    out = run_pytest(tmp_path, '--notebook-workers', '0')
    assert out.returncode == 0 and '2 passed' in out.stdout, out.stdout + out.stderr
    assert there() == {'ran', 'slow_notebook'}
    out = run_pytest(tmp_path, '--notebook-workers', '0', '--slow')
    assert out.returncode == 0 and there() == {'ran', 'slow_cell', 'slow_notebook'}, out.stdout + out.stderr

def test_runner_survives_a_notebook_that_dies_and_keeps_notebooks_apart(tmp_path):
    notebook(tmp_path/'nbs'/'00_dies.ipynb', '# Dies\n\n> why', 'import os\nos._exit(3)')
    notebook(tmp_path/'nbs'/'01_sets.ipynb', '# Sets\n\n> why', 'import torch\ntorch.set_default_dtype(torch.float64)')
    notebook(tmp_path/'nbs'/'02_finds.ipynb', '# Finds\n\n> why', 'import torch\nassert torch.zeros(1).dtype == torch.float32')
    out = run_pytest(tmp_path, '--notebook-workers', '1')
    assert '1 failed, 2 passed' in out.stdout and 'nbs/00_dies.ipynb: its process ended with exit code 3' in out.stdout, out.stdout + out.stderr
