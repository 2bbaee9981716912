"""Is the site whole? What Quarto warned of, links that lead nowhere, and what would be loaded from another host.

    python docs/check.py _docs quarto.log      after docs/build, here and in the workflow
"""
import json, re, sys
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urldefrag, urljoin

ROOT = Path(__file__).parent.parent
LOADED = {'stylesheet', 'preload', 'modulepreload', 'icon', 'preconnect'}  # of <link rel=...>; the others only point somewhere

def site_url():  # ends in a slash
    return re.search(r'site-url: "(.+?)/?"', (ROOT/'nbs'/'nbdev.yml').read_text(encoding='utf-8'))[1] + '/'

def warnings(log):  # what Quarto and Pandoc said -> list of lines
    "Lines that warn or tell of an error."
    return [line for line in log.splitlines() if re.search(r'WARN|ERROR', line)]

class Page(HTMLParser):
    "The marks of a page, where it points, and what it loads."
    def __init__(self, text):
        super().__init__()
        self.ids, self.points, self.loads = {''}, set(), set()
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = {k: v or '' for k, v in attrs}
        self.ids |= {a.get('id', ''), a.get('name', '')}
        if tag == 'a' or tag == 'link' and not LOADED & set(a.get('rel', '').split()): self.points.add(a.get('href', ''))
        else: self.loads |= {a[k] for k in ('src', 'href', 'poster') if k in a}

def dead_links(root):  # folder of the site -> list of lines
    "Links within the site that lead nowhere, and what is loaded from another host."
    root, site, wrong = Path(root).resolve(), site_url(), []
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in root.rglob('*.html')}
    if not pages: return [f'{root} has no page']
    for path, page in pages.items():
        name = path.relative_to(root).as_posix()
        for link in page.points | page.loads:
            url, mark = urldefrag(urljoin(site + name, link))  # our own pages are linked in full as well, by nbdev
            if not url.startswith(site):
                if link in page.loads and re.match('https?:', url): wrong.append(f'{name} loads {link}')
                continue
            to = root/unquote(url[len(site):].partition('?')[0])
            if to.is_dir(): to /= 'index.html'
            if not to.exists(): wrong.append(f'{name}: {link} leads nowhere')
            elif to in pages and unquote(mark) not in pages[to].ids: wrong.append(f'{name}: {link} has no such place')
    for path in root.rglob('*.css'):
        for url in re.findall(r'''(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s;]+)''', path.read_text(encoding='utf-8')):
            wrong.append(f'{path.relative_to(root)} loads {url}')
    return sorted(wrong)

# The same before Quarto, on the notebooks that nbdev has prepared: what a test can do where there is no Quarto

def texts(nb):
    "All Markdown of a notebook."
    for c in nb['cells']:
        if c['cell_type'] != 'code': yield ''.join(c['source'])
        yield from (''.join(o['data']['text/markdown']) for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {}))

def marks(text):
    "The places of a page as Pandoc names them: headings, and what carries an id."
    found = set(re.findall(r'\bid="([^"]+)"|\{#([^}\s]+)', text))
    for heading in re.findall(r'^#+ (.+)$', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M), re.M):
        plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'\s*\{[^}]*\}$', '', heading)).lower()
        found.add((re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', plain).strip())), ''))
    return {a or b for a, b in found}

def dead_links_of_notebooks(folder):  # _proc -> list of lines
    "Links between pages whose page or place there is not, in notebooks as `nbdev-proc-nbs` leaves them."
    folder, site, wrong = Path(folder), site_url(), []
    pages = {p.relative_to(folder).as_posix(): '\n'.join(texts(json.loads(p.read_text(encoding='utf-8')))) for p in folder.rglob('*.ipynb')}
    written = {name: join(dirname(name), m[1]) if (m := re.search(r'^output-file: (\S+)', text, re.M)) else name.replace('.ipynb', '.html') for name, text in pages.items()}
    places = {name: marks(text) for name, text in pages.items()}
    by_output = {html: name for name, html in written.items()}
    for name, text in pages.items():
        prose = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
        for link in set(re.findall(re.escape(site) + r'''([^\s)"'`<>]+)''', prose)):
            page, _, mark = link.partition('#')
            if page not in by_output: wrong.append(f'{name}: {link} leads nowhere')
            elif mark and mark not in places[by_output[page]]: wrong.append(f'{name}: {link} has no such place')
        for link in set(re.findall(r'\]\((?![a-z]+:)([^)\s]+)\)', prose)):
            page, _, mark = link.partition('#')
            to = normpath(join(dirname(name), page)) if page else name
            if to.endswith('.ipynb') and to not in pages: wrong.append(f'{name}: {link} leads nowhere')
            elif mark and to in places and mark not in places[to]: wrong.append(f'{name}: {link} has no such place')
    return sorted(wrong)

if __name__ == '__main__':
    folder, log = sys.argv[1:]
    wrong = warnings(Path(log).read_text(encoding='utf-8')) + dead_links(folder)
    print(len(list(Path(folder).rglob('*.html'))), 'pages,', len(wrong), 'mistakes')
    sys.exit('\n'.join(wrong) or 0)
