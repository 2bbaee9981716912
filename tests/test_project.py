"""What no notebook can hold about itself: the export, the order of the modules, the pages, the metadata, the state of the files."""
import ast, configparser, importlib.metadata, inspect, json, os, re, shlex, shutil, subprocess, sys, tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from fastcore.docments import docments
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export
from nbdev.quarto import refresh_quarto_yml

import pages, reference
from reference import public

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from docs import check

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
    def folder(m): return m.split('.')[1] if m.count('.') > 1 else 'top'
    for f in sorted({folder(m) for m in graph}): print(f'{f:11} imports from ' + ' '.join(sorted({folder(i) for m, (_, needs) in graph.items() if folder(m) == f for i in needs} - {f})))
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

def check_reference_pages_in_step():
    "What the site says of commands, options, recipes and functions is what the code says of them now."
    stale = [name for name in reference.PAGES if (ROOT/'nbs'/'reference'/f'{name}.ipynb').read_text(encoding='utf-8') != reference.text(name)]
    assert not stale, f'run: python tests/pages.py ({stale})'

def check_reference_pages_whole():
    "Counted from the other side: every flag, option, recipe and public function is on its page."
    import argparse
    from rils_nb import commands, config
    from rils_nb.methods import base as methods
    text = {name: '\n'.join(page()) for name, page in reference.PAGES.items()}
    data = next(a for a in commands.data_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices.values()
    parsers = [config.parser(), commands.eval_parser(), commands.report_parser(), commands.export_parser(), *data]
    flags = {s for p in parsers for a in p._actions for s in a.option_strings if s not in ('-h', '--help')}
    assert len(flags) > 70 and not [f for f in flags if f'`{f}`' not in text['command_line'] and f'`{f} ' not in text['command_line']]
    for name, cls in methods.METHODS.items():
        section = text['method_options'].partition(f'\n## {name}\n')[2].partition('\n## ')[0]
        assert section and not [k for k in methods.method_options(cls) if f'| `{k}` |' not in section], name
    assert not [n for n in config.all_recipes() if text['recipes'].count(f'\n| `{n}` |') != 1]
    modules = ['.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in python_files() if not p.name.startswith('_')]
    lost = [(m, n) for m in modules for n, _ in public(import_module(m)) if n not in config.all_recipes() and f'[{reference.cell(n)}](' not in text['python_api']]
    assert not lost, lost

@pytest.mark.parametrize('check', [check_reference_pages_in_step, check_reference_pages_whole])
def test_reference_pages(check):
    "In a process of its own: other tests register methods and sizes."
    code = f"import sys; sys.path.insert(0, 'tests'); import test_project; test_project.{check.__name__}()"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]

def test_sidebar_names_each_page_once():
    "A page that a group names and that is not there, a title for no page, and two entries of one title would all be mistakes."
    text = (ROOT/'nbs'/'sidebar.yml').read_text(encoding='utf-8')
    found = [(page, read_nb(ROOT/'nbs'/page).cells[0].source.splitlines()[0].removeprefix('# ')) for page in re.findall(r'^ +- (\S+\.ipynb)$', text, re.M)]
    found += [(page, title) for title, page in re.findall(r'^ +- text: "(.+)"\n +href: (\S+)$', text, re.M)]
    pages_, titles = [p for p, _ in found if not p.startswith('https:')], [t for _, t in found]
    assert sorted(pages_) == sorted(name_of(p) for p in NOTEBOOKS)
    assert not [t for t in titles if titles.count(t) > 1], [t for t in titles if titles.count(t) > 1]
    assert not pages.TITLES.keys() - {p.stem for p in NOTEBOOKS}

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
    from rils_nb import commands, config
    from rils_nb.methods import base as methods
    from rils_nb.core import UserError
    methods.import_methods()
    monkeypatch.setattr(commands, 'task_options', cache(commands.task_options))  # read once, not for every command
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
            elif argv[0] == 'picture': commands.picture_parser().parse_args(argv[1:])
            elif not argv[0].startswith('-'): commands.parse_eval(argv)
        except UserError as e: wrong.append(f'{where}: {command} {shlex.join(argv)}: {e}')
    assert len(found) > 100 and not wrong, '\n'.join(wrong)

def test_migration_names_what_exists():
    "In the second column of its tables stand flags and options of ours."
    from rils_nb import commands, config
    from rils_nb.methods import base as methods
    methods.import_methods()
    flags = {s for p in (config.parser(), commands.eval_parser()) for a in p._actions for s in a.option_strings}
    opts = {k for cls in methods.METHODS.values() for k in methods.method_options(cls)}
    text = '\n'.join(c.source for c in read_nb(ROOT/'nbs'/'guides'/'migration.ipynb').cells)
    ours = [line.split('|')[2] for line in text.splitlines() if line.startswith('| `--')]
    named = [f for cell in ours for f in re.findall(r'--[\w-]+', cell)]
    options = [k for cell in ours for given in re.findall(r'--opts (\S+)`', cell) for k in re.findall(r'(\w+)=', given)]
    assert len(named) > 60 and not set(named) - flags and len(options) > 6 and not set(options) - opts, (set(named) - flags, set(options) - opts)

# The page of tables

TABLES = {  # what the papers have, by their numbers; main texts of MaskCLIP and RevColV2 were not available
    'RILS': ['Figure 1', 'Figure 2', *(f'Table {k}' for k in (*range(1, 11), '11a', '11b', '11c', *(f'A{k}' for k in range(1, 8)))), 'Algorithm 1'],
    'MILAN': [*(f'Figure {k}' for k in range(1, 5)), *(f'Table {k}' for k in range(1, 11))],
    'MaskCLIP': ['Table 1', 'Table 2', 'Figure 2', 'Figure 3'],
    'RevColV2': [f'Table {k}' for k in range(1, 6)]}

def rows_of_tables():
    "The rows of the page of tables: paper, table, row, the paper's result, how it is made."
    paper = table = ''
    for cell in read_nb(ROOT/'nbs'/'explanations'/'tables.ipynb').cells[2:]:
        for line in cell.source.splitlines():
            if line.startswith('## '): paper = line[3:]
            elif line.startswith('### '): table = line[4:].partition(':')[0]
            elif line.startswith('| ') and not line.startswith('| row |'): yield paper, table, *line.strip('| ').split(' | ')

def test_each_table_of_the_papers_is_there():
    rows = list(rows_of_tables())
    assert len(rows) > 150 and all(len(r) == 5 for r in rows), [r for r in rows if len(r) != 5]
    found = {paper: list(dict.fromkeys(table for p, table, *_ in rows if p == paper and not table.startswith('Section'))) for paper in TABLES}
    assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in TABLES.items()}
    lacking = [r for r in rows if '`' not in r[-1] and not re.search(r'not (?:yet|made): \w|as in |as Figure|upper row', r[-1])]
    assert not lacking, f'no command, and no reason: {lacking}'

def test_recipes_and_tables_name_each_other():
    "Each recipe that a row names exists, each run that it begins from is made by a row, and each recipe that promises a paper's result is in a row; so are its figures."
    from rils_nb.config import all_recipes, parse
    commands = [(r, shlex.split(c)) for r in rows_of_tables() for c in re.findall(r'`(rils-(?:train|eval) [^`]*)`', r[-1]) if 'RUN' not in c]
    recipes, made, begun, wrong = all_recipes(), set(), set(), []
    for row, (command, *argv) in commands:
        if command == 'rils-eval':
            begun |= {(word, ' '.join(argv)) for word in argv if word.startswith('runs/')}
            continue
        config = parse(argv)  # an unknown recipe is refused
        made.add(config.out)
        begun |= {(word, ' '.join(argv)) for word in (config.init, *re.findall(r'(?:^|,)teacher=([^,]+)', config.opts)) if word.startswith('runs/')}
        promised = re.findall(r'\d\d\.\d+', ' '.join(recipes[argv[0]].__doc__.split()))
        if len(argv) == 1 and promised and re.search(r'\d\d\.\d', row[3]) and not set(promised) & set(re.findall(r'\d\d\.\d+', row[3])): wrong.append(f'{row[:4]}: {argv[0]} promises {promised}')
    assert len(commands) > 250 and not wrong, '\n'.join(wrong)
    assert not {b for b in begun if b[0] not in made}, sorted(b for b in begun if b[0] not in made)
    page = '\n'.join(c.source for c in read_nb(ROOT/'nbs'/'explanations'/'tables.ipynb').cells)
    absent = [name for name, r in recipes.items() if not name.startswith('shapes') and re.search(r'paper|supplement', r.__doc__) and not re.search(rf'\b{name}\b', page)]
    assert not absent, f'recipes of papers that no row of nbs/explanations/tables.ipynb names: {absent}'

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
    for name in ('rils_nb', 'docs'): shutil.copytree(ROOT/name, copy/name, dirs_exist_ok=True)
    code = 'from nbdev.serve import proc_nbs\nif __name__ == "__main__": proc_nbs(n_workers=2)'
    (copy/'make.py').write_text(code)
    out = subprocess.run([sys.executable, 'make.py'], cwd=copy, capture_output=True, text=True, timeout=3600)
    assert out.returncode == 0, out.stderr.rpartition('Exception: ')[2] or out.stderr
    assert 'imports and other code' not in out.stderr, out.stderr
    made = {p.relative_to(copy/'_proc').as_posix() for p in (copy/'_proc').rglob('*.ipynb')}
    assert made == {name_of(p) for p in NOTEBOOKS}
    dead = check.dead_links_of_notebooks(copy/'_proc')
    assert not dead, '\n'.join(dead)

# The metadata

def test_settings_pyproject_and_init_agree():
    project = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']
    assert (project['name'], project['description']) == (SETTINGS['lib_name'], SETTINGS['description'])
    assert import_module('rils_nb').__version__ == SETTINGS['version']
    assert not {'dependencies', 'requires-python', 'optional-dependencies', 'scripts', 'entry-points', 'keywords'} - set(project['dynamic'])
    assert project['urls'].keys() >= {'Repository', 'Documentation'}
    assert re.search(rf'^version: {re.escape(SETTINGS["version"])}$', (ROOT/'CITATION.cff').read_text(encoding='utf-8'), flags=re.M)
    assert re.search(rf'^## {re.escape(SETTINGS["version"])}\b', (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), flags=re.M)

def test_help_lists_what_is_registered():
    "In a process of its own, since other tests register methods and tasks."
    code = ('from rils_nb import config; from rils_nb.evals import harness; from rils_nb.methods import base as methods; from rils_nb.models import masking, vit as model\nmethods.import_methods(), harness.import_tasks()\n'
            'found = dict(method=methods.METHODS, size=model.SIZES, masking=masking.MASKINGS, tasks=harness.EVALS)\n'
            'assert {k: sorted(v) for k, v in config.CHOICES.items()} == {k: sorted(v) for k, v in found.items()}, config.CHOICES')
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)

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
    own, by_name, optional = {'rils-nb'}, {'tensorboard'}, {'scikit-learn'}  # by_name: imported by a library at the user's word; optional: one picture names it where it is missing
    wrong = {'imported by rils_nb, not in requirements': library - needed - own - (optional & for_dev),
             'imported by notebooks or tests, not in requirements or dev_requirements': around - needed - for_dev - own - {'execnb', 'setuptools'},
             'in requirements, not imported by rils_nb': needed - library,
             'in dev_requirements, not imported by notebooks or tests': for_dev - around - by_name}
    assert not any(wrong.values()), wrong

# The code

OBVIOUS = {'self', 'cls', 'config', 'path', 'text', 'name', 'seed', 'args', 'kwargs'}  # parameters whose name says it all

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
    "Run pytest with our conftest.py on the notebooks of a folder; these need none of the heavy libraries."
    (folder/'conftest.py').write_text(re.sub('^HEAVY = .*', 'HEAVY = []', (ROOT/'conftest.py').read_text(encoding='utf-8'), flags=re.M), encoding='utf-8')
    (folder/'pyproject.toml').write_text((ROOT/'pyproject.toml').read_text(encoding='utf-8'), encoding='utf-8')
    (folder/'tests').mkdir(exist_ok=True)
    return subprocess.run([sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', *args], cwd=folder, capture_output=True, text=True, timeout=3600)

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

# Names

TWO_MEANINGS = {  # public names that stand in two modules, and why
    'train': 'the command and the loop that it runs', 'evaluate': 'the command, the function of a notebook, and the evaluation of a run', 'export': 'the command and what it calls',
    'reconstruction': 'an evaluation and the picture of it, each registered by its name'}
PREPOSITIONS = set('at in on of by to from with through between where about into onto over under behind beside within beyond without'.split())
PARTICIPLES = set('told drawn shown taught seen hit won kept made given taken found held known left lost said written sent heard gone'.split())
ADJECTIVES = {  # functions that are called by a participle, and why
    '_striped': 'a style of scenes, by its name', '_dotted': 'a style of scenes, by its name', '_blurred': 'a style of scenes, by its name', '_inverted': 'a style of scenes, by its name',
    'federated': 'a property of LVIS, its name in the field'}

def definitions():
    "Each function and class of the package, outside of functions: module, name, whether it belongs to a class."
    for module in sorted((ROOT/'rils_nb').rglob('*.py')):
        if module.name == '_modidx.py': continue
        for node in ast.parse(module.read_text()).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            name = module.relative_to(ROOT).as_posix()
            if isinstance(node, ast.FunctionDef) or node.name[0] != '_': yield name, node.name, any('patch' in ast.unparse(d) for d in node.decorator_list)
            if isinstance(node, ast.ClassDef): yield from ((name, n.name, True) for n in node.body if isinstance(n, ast.FunctionDef))

def test_a_name_has_one_meaning_and_says_what_it_does():
    "No public name in two modules; no function that is called by a participle or a preposition alone."
    places, wrong = {}, set()
    for module, name, in_class in definitions():
        words = name.strip('_').split('_')
        if not name.startswith('_') and not in_class: places.setdefault(name, set()).add(module)
        if name.startswith('__') or not words[0].islower() or words[0] == 'embed': continue
        participle = words[0] in PARTICIPLES or re.search('[^e]ed$', words[0])
        if words[0] in PREPOSITIONS and len(words) == 1 or participle and (len(words) == 1 or words[1] in PREPOSITIONS): wrong.add(name)
    assert {k for k, v in places.items() if len(v) > 1} == set(TWO_MEANINGS), {k: v for k, v in places.items() if len(v) > 1}
    assert wrong == set(ADJECTIVES), wrong ^ set(ADJECTIVES)
