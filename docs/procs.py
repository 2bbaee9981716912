"""What nbdev does to a cell on its way to the site, where it is to be done otherwise; named in pyproject.toml. docs/build puts the project's folder on PYTHONPATH, so that this file is found."""
import re
from functools import lru_cache

from rils_nb._modidx import d

SITE = d['settings']['doc_host'] + d['settings']['doc_baseurl'] + '/'

@lru_cache(None)
def places():  # -> dict: a name as prose writes it -> its place on the site
    "Public names alone: a private one has no place there. What two modules call by one name has none either, unless the module stands before it."
    short, full = {}, {}
    for module, names in d['syms'].items():
        for name, (place, _) in names.items():
            inside = name.removeprefix(f'{module}.')
            if any(part.startswith('_') for part in inside.split('.')): continue
            for written in (inside, f'{module.rpartition(".")[2]}.{inside}'): short.setdefault(written, set()).add(place)
            full |= {name: place, name.removeprefix('rils_nb.'): place}
    return {k: min(v) for k, v in short.items() if len(v) == 1} | full

def linkify(text):
    "Names in backticks become links, but not in code and not where they are links already."
    def link(m):
        place = places().get(m[2])
        return f'{m[1]}[{m[0][len(m[1]):]}]({SITE}{place})' if place else m[0]
    parts = re.split(r'(^```.*?^```|^    .*?$|\[[^\]]*\]\([^)]*\))', text, flags=re.S | re.M)
    return ''.join(p if i % 2 else re.sub(r'(^|[^`])`([^`\s]+?)(?:\(\))?`(?!`)', link, p) for i, p in enumerate(parts))

def add_links(cell):
    "In the place of nbdev's own, which links private names to places that are not there."
    if cell.cell_type == 'markdown': cell.source = linkify(cell.source)
    for o in cell.get('outputs', []):
        if 'text/markdown' in o.get('data', {}): o['data']['text/markdown'] = linkify(''.join(o['data']['text/markdown']))

def shorten(cell):
    "A default that takes lines, as a list of prompts does, is left out of a signature."
    if cell.cell_type != 'code' or 'show_doc(' not in cell.source: return
    for o in cell.get('outputs', []):
        if 'text/markdown' in o.get('data', {}):
            o['data']['text/markdown'] = re.sub(r'^(    \w+(?::[^=\n]*)?=).{120,}?(, #.*|,)$', r'\1...\2', ''.join(o['data']['text/markdown']), flags=re.M)
