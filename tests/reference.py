"""Pages of the site that say what the code says of itself: commands, options, recipes, functions. `tests/pages.py` writes them, tests/test_project.py compares.

Each function here returns the cells of one notebook of nbs/reference/, all of them Markdown.
"""
import argparse, dataclasses, inspect, json, re
from importlib import import_module
from pathlib import Path

from fastcore.docments import docments
from fastcore.nbio import read_nb

import rils_nb
from rils_nb import commands, config
from rils_nb.evals import harness
from rils_nb.methods import base as methods
from rils_nb.models import masking, vit as model
from rils_nb.config import Config

NBS = Path(__file__).parent.parent/'nbs'
MADE = 'This page is made from the code by `python tests/pages.py`, and a test holds that it is what the code says now.'

def cell(text):
    "Text as the cell of a table: one line, nothing that Markdown reads as a command."
    text = ' '.join(str(text).split()).replace('|', ' or ')
    parts = re.split(r'(`[^`]*`)', text)  # code stays as it is
    return ''.join(p if p[:1] == '`' else re.sub(r'([$*_<>~^\\])', r'\\\1', p) for p in parts)

def code(value): return f'`{value}`' if str(value) else 'empty'

def table(heads, rows):
    "A table in Markdown."
    lines = [heads, ['---'] * len(heads), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)

def shown(value):
    "A default as it is typed."
    return code(str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value)

# Command line

def flags(parser):  # argparse.ArgumentParser -> its positional arguments and its flags, but for --help
    actions = [a for a in parser._actions if not isinstance(a, (argparse._HelpAction, argparse._SubParsersAction))]
    return [a for a in actions if not a.option_strings], [a for a in actions if a.option_strings]

def arguments(parser):
    "A table of all arguments of a parser."
    places, named = flags(parser)
    rows = [[code(a.metavar or a.dest), cell(a.help)] for a in places]
    rows += [[code(f'{a.option_strings[0]} {a.metavar or a.dest.upper()}') + (', required' if a.required else ''), cell(a.help.replace('%%', '%'))] for a in named]
    return table(['argument', 'meaning'], rows)

def groups():  # -> list of (title, names of fields), as the comments between the fields of Config divide them
    found = []
    for line in inspect.getsource(Config).splitlines():
        if m := re.match(r'    # (.+)', line): found.append((m[1], []))
        elif m := re.match(r'    (\w+):\w+=', line): found[-1][1].append(m[1])
    return found

def fields(names):
    "A table of fields of Config."
    words, default = config.field_help(), {f.name: (f.type.__name__, f.default) for f in dataclasses.fields(Config)}
    def allowed(k): return cell(config.RULES[k][0].removeprefix('must be ').removeprefix('from ')) if k in config.RULES else 'true, false' if default[k][0] == 'bool' else ''
    return table(['flag', 'type', 'default', 'allowed', 'meaning'], [[f'`--{k}`', default[k][0], shown(default[k][1]), allowed(k), cell(words[k])] for k in names])

def registered(registry): return ', '.join(f'`{k}`' for k in registry)

def command_line():
    methods.import_methods()
    harness.import_tasks()
    sub = next(a for a in commands.data_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    tasks = {k: (v, owners) for k, (v, h) in commands.task_options().items() for owners in [re.search(r'\[(.+)\]$', h)[1]]}
    own = [[f'`--{k}`', type(default).__name__, shown(default), cell(h[:h.rindex('[')]), ', '.join(f'`{t}`' for t in tasks[k][1].split(', '))]
           for k, (default, h) in commands.task_options().items()]
    by_name = [k for k, f in harness.EVALS.items() if not f.auto]
    yield '# Command line\n\n> Every argument of the four commands, and every name that they take.'
    yield ('`rils-train` trains, `rils-eval` measures, `rils-data` checks and packs data, `rils-export` writes a model for timm or open_clip. Each has `--help`. '
           f'Flags are written in full; an unknown one is refused with the nearest that exists.\n\n{MADE}')
    yield ('## rils-train\n\n```bash\nrils-train [RECIPE] [--field VALUE ...] [--opts key=value,...]\naccelerate launch -m rils_nb.train [RECIPE] [--field VALUE ...]     # several processes\n```\n\n'
           '`RECIPE` is a name of [the table of recipes](recipes.ipynb), or the `config.json` of another run; without it `shapes`. Flags change single fields of the recipe. '
           'A flag of type `bool` may stand alone, as `--resume`. `--epochs` sets `--steps` to 0. `--opts` takes the place of all options of the recipe; '
           '[method options](method_options.ipynb) lists those of each method.')
    free = ', '.join(f'`--{f.name}`' for f in dataclasses.fields(Config) if f.name in config.FREE)
    yield f'When a run is [resumed](../guides/resume.ipynb), these may have other values: {free}. A complete run is made longer by a higher `--steps` or `--epochs`. A change of any other flag is refused.'
    for title, names in groups(): yield f'### {title[0].upper() + title[1:]}\n\n{fields(names)}'
    yield ('### Names\n\n' + table(['flag', 'takes'], [
        ['`--method`', registered(sorted(methods.METHODS))], ['`--size`', registered(model.SIZES)], ['`--masking`', registered(masking.MASKINGS)],
        ['`--tasks`', registered(sorted(harness.EVALS)) + f'; by name only: {registered(sorted(by_name))}']])
        + '\n\nSizes that end in `-clip` or `-quickgelu` are those of CLIP\'s public weights and need `--init open_clip:...`; `RevColV2-*` have reversible columns in place of a ViT. '
          '[Data](../guides/data.ipynb) says what `--data` reads, [what a run starts from](../training/28_starts.ipynb) what `--init` does.')
    yield ('## rils-eval\n\n```bash\nrils-eval runs/shapes --tasks retrieval\nrils-eval open_clip:ViT-B-32/laion2b_s34b_b79k --tasks zeroshot --data photos/test\n```\n\n'
           + table(['argument', 'meaning'], [['`MODEL`', cell(flags(commands.eval_parser())[0][0].help)], *([f'`--{k}`', cell(v)] for k, v in commands.FLAGS.items())])
           + '\n\nOptions of single tasks:\n\n' + table(['flag', 'type', 'default', 'meaning', 'tasks'], own))
    yield '## rils-eval report\n\n```bash\nrils-eval report runs/shapes runs/shapes_clip --out compared.md\n```\n\n' + arguments(commands.report_parser())
    yield ('## rils-data check\n\n```bash\nrils-data check pairs.csv --show pairs.png\n```\n\n' + arguments(sub['check']) + f'\n\n{cell(commands.DATA)}.')
    yield '## rils-data pack\n\n```bash\nrils-data pack pairs.csv shards/train --resize 256\n```\n\n' + arguments(sub['pack'])
    yield '## rils-export\n\n```bash\nrils-export runs/shapes --to timm --out exported\n```\n\n' + arguments(commands.export_parser())
    yield ('## Exit codes\n\n' + table(['code', 'meaning'], [
        ['0', 'done'], ['1', 'a mistake of the program, with a traceback; `rils-data check`: there are damaged samples'],
        ['2', 'a mistake in what was given, or a full disk: one line on stderr that begins with `error:`'],
        ['130, 143', 'stopped by Ctrl-C or SIGTERM; `rils-train` has saved, and `--resume` goes on'], ['141', 'the reader of the output went away, as `head` does']]))

# Method options

def homes():  # -> dict: module -> its notebook, seen from nbs/
    found = {}
    for p in sorted(NBS.rglob('[!_.]*.ipynb')):
        exports = [d for c in read_nb(p).cells if c.cell_type == 'code' and (d := c.directive('default_exp'))]
        if exports: found[exports[0]] = p.relative_to(NBS).as_posix()
    return found

def first_line(obj): return (inspect.getdoc(obj) or '').split('\n\n')[0]

def method_options():
    methods.import_methods()
    home = homes()
    yield '# Method options\n\n> What `--opts` takes for each method, with the options that a method inherits from another.'
    yield ('Options of a method are given together, with commas between them, and take the place of those of the recipe:\n\n'
           "```bash\nrils-train shapes --opts recon_weight=0.2,recon_ramp=1.0\nrils-train shapes_slip --opts ssl_weight=0.5,head_hidden=256,head_dim=64\n```\n\n"
           f'`true` and `false` switch; lists are written with colons, as `lr_factors=0.3:1:3`. An unknown option is refused with a list of those that exist.\n\n{MADE}')
    everywhere = {}
    for name, cls in sorted(methods.METHODS.items()):
        opts, words = methods.method_options(cls), methods.option_help(cls)
        own = {p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY} if '__init__' in vars(cls) else set()
        def origin(k):
            makers = [c for c in cls.__mro__ if '__init__' in vars(c) and k in inspect.signature(c.__init__).parameters]
            return '' if k in own else f'`{makers[0].__name__}`'
        link = home[cls.__module__.removeprefix('rils_nb.')]
        rows = [[f'`{k}`', type(v).__name__, shown(v), cell(words[k]), origin(k)] for k, v in opts.items()]
        everywhere |= {k: everywhere.get(k, []) + [name] for k in opts}
        yield f'## {name}\n\n{cell(first_line(cls))} [Code and tests](../{link}).\n\n' + table(['option', 'type', 'default', 'meaning', 'inherited from'], rows)
    yield '## By option\n\n' + table(['option', 'methods'], [[f'`{k}`', ', '.join(f'`{n}`' for n in names)] for k, names in sorted(everywhere.items())])

# Recipes

def needed_first(c, names):  # Config -> what has to be there before
    opts = dict(o.partition('=')[::2] for o in c.opts.split(',') if o)
    found = [('--init', c.init)] * bool(c.init) + [('teacher', opts.get('teacher', ''))] * bool(opts.get('teacher'))
    def words(what): return f'`{what[5:]}`' if what.removeprefix('runs/') in names else f'`{what}`' + ' (no recipe makes it)' * what.startswith('runs/')
    return ', '.join(f'{words(v)} as {"start" if k == "--init" else "teacher"}' for k, v in found)

def data_name(data):  # as in a Config -> the data set, short
    return data.split(':')[0] if data.startswith('scenes') else re.search(r'(?:^|[:,])([\w-]+)/?[^,:]*$', re.sub(r',\w+=[^,]*|^data/', '', data))[1]

def expectation(doc):  # -> a recipe's words without its commands, and whose figure stands in them
    text = re.sub(r'\s*(First )?`(?:accelerate|rils-train|python) [^`]*`', '', ' '.join(doc.split())).strip()
    has_figure = re.search(r'\d\d\.\d|\d\d-\d\d %', text)
    return text, 'measured' if 'measured' in text else 'paper' if has_figure and re.search('paper|supplement|abstract', text) else ''

def recipes():
    found = config.all_recipes()
    parts = {'On the embedded scenes and on emoji': lambda n, c: c.data.startswith('scenes') or n == 'emoji', 'Pre-training': lambda n, c: c.method not in ('finetune', 'linear', 'detect', 'segment'),
             'Fine-tuning and linear probing': lambda n, c: c.method in ('finetune', 'linear'), 'Detection and segmentation': lambda n, c: True}
    yield '# Recipes\n\n> Every recipe: what it trains on what, what it needs first, and the figure to expect.'
    yield ('`rils-train shapes_clip` runs a recipe; each flag changes one field of it, and `rils-train shapes_clip --steps 100` is the same run in short. *Paper* is a figure that a paper reports '
           'and nobody has reproduced with this code yet; *measured* was measured here. What the recipes of the scenes reach is measured in [results](../explanations/results.ipynb). '
           f'Paths of data are those of the recipe: give your own with `--data` and `--eval_data`.\n\n{MADE}')
    left = {n: r() for n, r in found.items()}
    logs = {page: (NBS/'explanations'/f'{page}.ipynb').read_text(encoding='utf-8') for page in ('results', 'reproduction_log')}
    for title, belongs in parts.items():
        rows = []
        for n, c in [(n, c) for n, c in left.items() if belongs(n, c)]:
            del left[n]
            words, whose = expectation(found[n].__doc__)
            whose = whose or next((f'[measured](../explanations/{page}.ipynb)' for page, text in logs.items() if re.search(rf'`{n}`|rils-train {n}\b', text)), '')
            length = f'{c.epochs:g} epochs' if c.epochs else f'{c.steps:,} steps'
            rows.append([f'`{n}`', f'`{c.method}`', c.size, data_name(c.data), f'{c.batch:,}', length,
                         needed_first(c, found), cell(words), whose or '–'])
        yield f'## {title}\n\n' + table(['recipe', 'method', 'size', 'data', 'batch', 'length', 'needs first', 'what it is and what to expect', 'figure'], rows)

# Python API

def argument_help(f):  # -> dict: argument, or `return` -> its comment
    words = {k: ' '.join((v or '').split()) for k, v in docments(f).items()}
    words |= {m[1]: m[2].strip() for m in re.finditer(r'\*\*(\w+),?\s*# (.+)', inspect.getsource(f))}  # docments leaves these out
    for k in [k for k, v in words.items() if v.startswith('->')]: words['return'] = words.pop(k)[2:].strip()  # f(x):  # -> what
    return words

def public(module):
    "Public functions and classes that a module defines."
    for name in getattr(module, '__all__', []):
        obj = getattr(module, name)
        if (inspect.isfunction(obj) or inspect.isclass(obj)) and obj.__module__ == module.__name__: yield name, obj

def python_api():
    home = homes()
    yield '# Python API\n\n> The eight names that most programs need, and every public function of every module.'
    yield ('```python\nfrom rils_nb import Config, recipe, fit, load, open_source, evaluate, search, export\n```\n\n'
           f'Importing these is quick; torch is imported when one of them is used. Everything below the first section is for those who extend the package.\n\n{MADE}')
    for name in rils_nb.__all__:
        obj = getattr(rils_nb, name)
        link = home[obj.__module__.removeprefix('rils_nb.')]
        if inspect.isclass(obj):
            yield f'## {name}\n\n{cell(first_line(obj))} Its fields are the flags of [rils-train](command_line.ipynb#rils-train). [Code and tests](../{link}).'
            continue
        words = argument_help(obj)
        rows = [[f'`{"**" * (p.kind is p.VAR_KEYWORD)}{k}`', '' if p.kind is p.VAR_KEYWORD else 'required' if p.default is p.empty else code(repr(p.default)), cell(words.get(k) or '')]
                for k, p in inspect.signature(obj).parameters.items()]
        yield f'## {name}\n\n{cell(first_line(obj))} [Code and tests](../{link}).\n\n' + table(['argument', 'default', 'meaning'], rows) + (f'\n\nReturns: {cell(words["return"])}.' if words.get('return') else '')
    yield '## All modules\n\nIn the order in which they are built; each imports only what stands before it.'
    for name, link in sorted(home.items(), key=lambda m: Path(m[1]).name):
        module = import_module(f'rils_nb.{name}')
        title, why = [line for line in read_nb(NBS/link).cells[0].source.splitlines() if line.strip()][:2]
        rows = [[f'[{cell(n)}](../{link}#{n.lower()})', cell(first_line(o))] for n, o in public(module) if n not in config.all_recipes()]
        yield f'### {name}\n\n{why.removeprefix("> ")} [{title.removeprefix("# ")}](../{link}).' + ('\n\n' + table(['name', 'what it does'], rows) if rows else '')

PAGES = dict(command_line=command_line, method_options=method_options, recipes=recipes, python_api=python_api)

def text(name):
    "One of PAGES as the text of a notebook."
    cells = [dict(cell_type='markdown', id=f'{name.replace("_", "-")}-{i}', metadata={}, source=source.splitlines(True)) for i, source in enumerate(PAGES[name]())]
    nb = dict(cells=cells, metadata=dict(kernelspec=dict(display_name='python3', language='python', name='python3')), nbformat=4, nbformat_minor=5)
    return json.dumps(nb, indent=1, ensure_ascii=False) + '\n'
