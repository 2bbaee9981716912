"""Package metadata that settings.ini holds: requirements, extras and commands."""
from configparser import ConfigParser

from setuptools import setup

settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read('settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']

setup(
    packages=['rils_nb', *(f'rils_nb.{p}' for p in ('data', 'dense', 'evals', 'finetuning', 'methods', 'models', 'plots', 'recipes', 'training'))],
    package_data={'rils_nb.data': ['*.txt']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['rils_nb=rils_nb._modidx:d']},
    keywords=cfg['keywords'].split(),
)
