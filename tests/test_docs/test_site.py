"""The site's parts: navigation, links and pictures. `make test` builds the whole."""

import posixpath
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip('mkdocs', reason='the site needs the extra docs')

import markdown
from mkdocs.config import load_config
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
#: What includes a part of the README in a page.
PART = r'^--8<-- "README.md:(\w+)"$'
#: Markdown that is read in the repository, the pages of the site included.
TEXTS = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')])


@pytest.fixture(scope='module')
def site():
    return load_config(str(ROOT / 'mkdocs.yml'))


class Targets(HTMLParser):
    """Collects where links and pictures point, and the anchors of headings."""

    def __init__(self):
        super().__init__()
        self.links, self.pictures, self.anchors = [], [], set()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if 'id' in attributes:
            self.anchors.add(attributes['id'])
        if tag == 'a' and 'href' in attributes:
            self.links.append(attributes['href'])
        if tag == 'img':
            self.pictures.append((attributes['src'], attributes.get('alt')))


@cache
def targets(path):
    """Of a Markdown file as a repository shows it: parts are not put in."""
    extensions = ['tables', 'fenced_code', 'toc', 'md_in_html']
    toc = {'slugify': slugify(case='lower')}
    html = markdown.markdown(
        path.read_text(), extensions=extensions, extension_configs={'toc': toc}
    )
    found = Targets()
    found.feed(html)
    return found


def is_local(target):
    return not urlsplit(target).scheme


def entries(nav):
    """Files that a navigation names."""
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else entries(value)


def test_every_page_is_in_the_navigation_once(site):
    named = list(entries(site.nav))
    assert len(set(named)) == len(named)
    docs = Path(site.docs_dir)
    assert set(named) == {str(p.relative_to(docs)) for p in docs.rglob('*.md')}


def test_every_room_has_its_page():
    rooms = {path.parent.name for path in ROOT.glob('pelk_mm/*/__init__.py')}
    assert {path.stem for path in ROOT.glob('docs/api/*.md')} == rooms
    for room in rooms:
        assert f'::: pelk_mm.{room}\n' in (ROOT / f'docs/api/{room}.md').read_text()


@pytest.mark.parametrize('path', TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures(path):
    found = targets(path)
    for target in [*found.links, *(source for source, _ in found.pictures)]:
        if not is_local(target):
            continue
        parts = urlsplit(target)
        file = path if not parts.path else path.parent / unquote(parts.path)
        assert file.exists(), f'{target} leads nowhere'
        if parts.fragment:
            assert parts.fragment in targets(file.resolve()).anchors, target
    for source, alt in found.pictures:
        assert alt, f'{source} has no text for those who cannot see it'


def with_parts(path):
    """A page with the parts of the README that it includes."""
    readme = (ROOT / 'README.md').read_text()

    def part(match):
        begin, end = (f'<!-- --8<-- [{s}:{match[1]}] -->' for s in ('start', 'end'))
        return readme.split(begin)[1].split(end)[0]

    return re.sub(PART, part, path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize('path', TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_references_are_defined(path):
    """Markdown leaves those as text that are not; parts bring theirs into a page."""
    text = re.sub(r'```.*?```|`[^`]*`', '', with_parts(path), flags=re.DOTALL)
    used = set(re.findall(r'\]\[([^\]]+)\]', text))
    assert used == set(re.findall(r'^\[([^\]]+)\]: \S', text, re.MULTILINE))


@pytest.mark.parametrize('path', [p for p in TEXTS if p.is_relative_to(ROOT / 'docs')])
def test_pages_stay_within_the_site(path):
    """What lies next to docs/ is not on the site."""
    folder = path.parent.relative_to(ROOT / 'docs').as_posix()
    found = targets(path)
    for target in [*found.links, *(source for source, _ in found.pictures)]:
        if is_local(target) and urlsplit(target).path:
            place = posixpath.normpath(posixpath.join(folder, urlsplit(target).path))
            assert not place.startswith('..'), target


def test_parts_of_the_readme_are_there():
    readme = (ROOT / 'README.md').read_text()
    included = [
        name
        for path in ROOT.glob('docs/*.md')
        for name in re.findall(PART, path.read_text(), re.MULTILINE)
    ]
    assert len(set(included)) == len(included) > 3
    for name in included:
        begin, end = (f'<!-- --8<-- [{side}:{name}] -->' for side in ('start', 'end'))
        assert readme.count(begin) == readme.count(end) == 1


def test_it_needs_no_network(site):
    """Neither fonts nor scripts nor style sheets of other servers."""
    assert site.theme['font'] is False
    assets = [*site.extra_css, *map(str, site.extra_javascript)]
    assert assets
    for asset in assets:
        assert (Path(site.docs_dir) / asset).is_file()
    for text in Path(site.docs_dir).rglob('*.css'):
        assert not re.search(r'@import|url\(\s*[\'"]?(https?:)?//', text.read_text())
