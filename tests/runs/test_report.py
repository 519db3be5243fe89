"""The report: nothing from a network, hostile texts stay texts, and in a browser the map does what it says."""
import asyncio
import base64
import csv
import io
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from medstrat.runs.pictures_in_html import Embedding
from medstrat.runs.report import (
    CAUTIONS,
    PRIVACY,
    SECTIONS,
    WHY,
    Content,
    Examples,
    Subgroup,
    count_reasons,
    report_html,
    write_report,
)

HOSTILE = ['<img src=x onerror="document.title=\'taken\'">.png', "</script><script>document.title='taken'</script>",
           "=HYPERLINK(\"http://evil.example/x\")", "-2+3\"quote'.png", "تقرير الأشعة.png", "<!--<script>", "$\\frac{$ {{ 7*7 }}",
           "@{picture} &lt;b&gt; \u2028 ' \" `", "x" * 250 + ".png", "a%00b&c=d;e.png"]
rng = np.random.default_rng(0)


def examples(n, names, channels=1):
    return Examples(rng.integers(0, 256, (n, 20, 20, channels), dtype=np.uint8), names[:n], np.linspace(.4, 1, n), np.arange(n) / 7,
                    [f"or {HOSTILE[0]}"] * n)


def evidence(index=("label", "age")):
    return pd.DataFrame(dict(kind=["category", "number"], n=[20, 19], values=[2, 19], cramers_v=[.4, np.nan], correlation_ratio=[np.nan, .7],
                             by_chance=[.1, .2], p=[.5, .001], p_corrected=[.5, .002], predicts=[.3, .6], predicts_by_chance=[.25, .25],
                             remark=["20 images", HOSTILE[0]]), index=list(index))


def full(n=20, channels=1):
    "A report with everything in it, and an enemy's text wherever one can come from outside"
    names = (HOSTILE * n)[:n]
    k = np.arange(n) % 3
    xy = np.stack([np.arange(n) % 5, np.arange(n) // 5], 1).astype(float)
    columns = pd.DataFrame({"label": ["=1+1", HOSTILE[1]] * (n // 2), HOSTILE[0]: rng.normal(size=n), "age": [np.nan, *range(n - 1)]})
    groups = [Subgroup(i, int((k == i).sum()), float((k == i).mean()), rng.random((20, 20, channels)), examples(8, names, channels),
                       examples(4, names, channels), examples(2, names, channels)) for i in range(3)]
    return Content(
        title=HOSTILE[1], alarms=[f"An artefact leads: `{HOSTILE[0]}`.", HOSTILE[1]], overview={"images": n, HOSTILE[0]: HOSTILE[1]},
        exclusions=pd.DataFrame(dict(file=HOSTILE * 30, kind="damaged", reason=HOSTILE * 30)), rules=HOSTILE[0], artefacts=evidence(HOSTILE[:2]),
        subgroups=groups, path=[(0, 1, rng.random((7, 20, 20, channels)))],
        embedding=Embedding(xy, k, names, rng.integers(0, 256, (n, 32, 32, channels), dtype=np.uint8), np.linspace(.4, 1, n), columns, HOSTILE[0]),
        associations=evidence(), characteristics=pd.DataFrame({("", HOSTILE[0]): ["1 (2)"], ("subgroup", "0"): [HOSTILE[1]]}, index=[HOSTILE[0]]),
        settings=pd.DataFrame(dict(value=[HOSTILE[0]], source=["asked for"]), index=["n_clusters"]), versions={HOSTILE[1]: HOSTILE[0]},
        methods=f"Images were grouped.\n\n{HOSTILE[0]}", missing={"path": HOSTILE[0]})


class Page(HTMLParser):
    "What a page is made of: elements with their attributes, text outside scripts and styles, scripts, ids"
    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.scripts, self._in = [], "", [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"): self._in = tag
        if tag == "script": self.scripts.append("")

    def handle_endtag(self, tag):
        if tag == self._in: self._in = None

    def handle_data(self, data):
        if self._in == "script": self.scripts[-1] += data
        elif self._in is None: self.text += data

    def all(self, tag): return [a for t, a in self.elements if t == tag]


@pytest.fixture(scope="module")
def page(): return Page(report_html(full()))


def test_nothing_comes_from_a_network(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "data", "poster", "action", "srcset", "xlink:href"):
            if name in attributes: assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:80])
    styles = re.findall(r"<style>.*?</style>", report_html(full()), re.S)
    assert styles and not any("url(" in s or "@import" in s for s in styles)
    assert not page.all("iframe") and not page.all("object") and not page.all("base")


def test_the_browser_is_forbidden_all_requests(page):
    rule = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    parts = dict(p.strip().split(" ", 1) for p in rule.split(";"))
    assert parts["default-src"] == "'none'" and parts["img-src"] == "data:"
    assert parts["script-src"] == parts["style-src"] == "'unsafe-inline'"


def test_hostile_texts_stay_texts(page):
    assert not [a for _, a in page.elements if any(k.startswith("on") for k in a)]
    assert all(a.get("src", "").startswith("data:image/") for a in page.all("img"))
    ours = [s for s in page.scripts if "'taken'" in s]      # as data only: in JSON, with < written as a number
    assert len(ours) == 2 and all(json.loads(s) is not None and "<" not in s for s in ours)
    for text in HOSTILE[:7]: assert text in page.text
    assert "49" not in re.findall(r"\$\\frac\{\$ (.*?) ", page.text)


def test_every_picture_has_an_alternative_text(page):
    assert page.all("img") and all(a.get("alt") for a in page.all("img"))


def test_headings_descend_by_one_and_ids_are_single(page):
    levels = [int(t[1]) for t, _ in page.elements if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for a in page.all("a") if a["href"].startswith("#"))
    assert page.all("html")[0]["lang"] == "en"


def test_artefacts_stand_before_meaning_and_alarms_before_all(page):
    at = page.text.index
    assert at("An artefact leads") < at("Contents") < at("were measured on the files") < at("Every column of the table")
    assert at(PRIVACY) < at("An artefact leads") and all(c in page.text for c in CAUTIONS)


@pytest.mark.parametrize("field", [f for f in WHY if f != "prototype"])
def test_what_is_missing_is_said(field):
    content = full()
    content.missing = {}
    setattr(content, field, type(getattr(Content(), field))() if getattr(Content(), field) is not None else None)
    assert WHY[field] in Page(report_html(content)).text
    content.missing = {field: "Nobody <asked>."}
    shown = Page(report_html(content)).text
    assert "Nobody <asked>." in shown and WHY[field] not in shown


def test_an_empty_report_has_every_section_and_no_script_for_a_map():
    page = Page(report_html(Content()))
    assert all(title in page.text for title in SECTIONS.values()) and "raised no alarm" in page.text
    assert not page.scripts and not page.all("img")


def test_empty_tables_are_as_good_as_none():
    empty = Page(report_html(Content(exclusions=pd.DataFrame(columns=["file", "kind", "reason"]), associations=evidence().iloc[:0])))
    assert WHY["exclusions"] in empty.text and WHY["associations"] in empty.text


@pytest.mark.parametrize("lacks", ["thumbnails", "probability", "columns"])
def test_a_map_may_lack_nearly_everything(lacks):
    content = full()
    setattr(content.embedding, lacks, None)
    assert "embedding-canvas" in report_html(content)


def test_subgroups_may_lack_nearly_everything():
    bare = Content(subgroups=[Subgroup(0, 0, 0.), Subgroup(1, 3, 1., typical=Examples(np.zeros((0, 8, 8, 1), np.uint8), []))])
    page = Page(report_html(bare))
    assert page.text.count("No images are shown of it.") == 2 and WHY["prototype"] in page.text
    assert "NaN" not in page.text and "nan" not in page.text


def test_exclusions_are_counted_first_and_cut():
    counts = count_reasons(pd.DataFrame(dict(kind=["a", "b", "b", None], reason=["x", "y", "y", None])))
    assert counts.values.tolist() == [["b", "y", 2], ["a", "x", 1], ["–", "–", 1]]
    content = Content(exclusions=pd.DataFrame(dict(file=[f"f{i}.png" for i in range(5000)], kind="damaged", reason="cut off")))
    text = Page(report_html(content)).text
    assert text.index("5000") < text.index("f0.png") and "f199.png" in text and "f200.png" not in text and "4,800 more" in text


def test_evidence_comes_strongest_first(page):
    own = report_html(Content(associations=evidence()))
    assert own.index("η = 0.70") < own.index("V = 0.40") and 'style="width:70.0%"' in own and 'style="left:20.0%"' in own
    left_out = evidence()
    left_out.loc["dull"] = {"remark": "left out: one value only"}
    text = Page(report_html(Content(associations=left_out))).text
    assert text.index("age") < text.index("label") < text.index("dull") and "one value only" in text and "nan" not in text


def test_pictures_decode_to_what_was_given():
    from PIL import Image
    x = np.zeros((1, 40, 40, 3), np.uint8)
    x[:, :, :20] = 200, 30, 30
    page = Page(report_html(Content(subgroups=[Subgroup(0, 1, 1., typical=Examples(x, ["a"]))])))
    data = page.all("img")[0]["src"].split(",")[1]
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int)
    assert back.shape == (40, 40, 3) and abs(back[:, :16] - x[0, :, :16]).max() < 12 and back[:, 24:].max() < 12


def test_five_thousand_images_of_noise_stay_below_15_mb(tmp_path):
    n = 5000
    noise = rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)
    names = [f"patient {i:05d}/a long name of a file with some more words {i}.jpeg" for i in range(n)]
    groups = [Subgroup(i, 250, .05, noise[i] / 255, *[Examples(noise[:8], names[:8])] * 3) for i in range(20)]
    columns = pd.DataFrame({f"column {i}": rng.integers(0, 5, n) for i in range(20)})
    content = Content(subgroups=groups, path=[(0, 1, noise[:9])] * 3,
                      embedding=Embedding(rng.normal(size=(n, 2)), rng.integers(0, 20, n), names, noise, rng.random(n), columns))
    assert write_report(content, tmp_path / "report.html").stat().st_size < 15e6


def test_more_images_than_a_page_holds_are_drawn_at_random_and_it_says_so():
    n = 5200
    content = Content(embedding=Embedding(rng.normal(size=(n, 2)), np.zeros(n, int), [f"f{i}" for i in range(n)]))
    html = report_html(content)
    assert "5,000 of 5,200 images" in Page(html).text.replace("\n", " ")
    def drawn(html): return re.findall(r'"f\d+"', html)
    assert len(drawn(html)) == 5000 and drawn(report_html(content)) == drawn(html)      # the same ones each time


def test_an_interrupted_report_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_report(Content(title="first"), tmp_path / "Übersicht 1.html")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): write_report(Content(title="second"), path)
    assert path.read_bytes() == before and b"first" in before


def test_names_that_are_no_text_are_written_all_the_same(tmp_path):
    name = "a\udcff.png"       # how Python holds a name with a byte that is no UTF-8; pandas' texts cannot
    content = Content(embedding=Embedding(np.zeros((1, 2)), [0], [name]), alarms=[name],
                      exclusions=pd.DataFrame(dict(file=pd.Series([name], dtype=object), kind="damaged", reason="cut off", size=np.nan)))
    text = write_report(content, tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("a\\udcff.png") == 3


# --- in a browser -------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: what a browser does with the report is not tested")


class Browser:
    "One page in headless Chromium, by its debugging protocol; every request, error and message is kept"
    def __init__(self, socket, page=""): self.socket, self.page, self.events, self.number = socket, page, [], 0

    async def call(self, method, **params):
        self.number += 1
        number = self.number
        await self.socket.write_message(json.dumps(dict(id=number, method=method, params=params)))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.read_message(), 60))
            if message.get("id") == number: return message.get("result", message)
            self.events.append(message)

    async def js(self, expression):
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, expression, seconds=60):
        for _ in range(seconds * 10):
            if (value := await self.js(expression)): return value
            await asyncio.sleep(.1)
        raise AssertionError(f"never true: {expression}")

    async def mouse(self, *kinds, x, y, button="left"):
        for kind in kinds: await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1,
                                           buttons=int(kind != "mouseReleased" and button == "left"))

    async def click(self, selector):
        x, y = await self.js(f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
                             f" return [b.x + b.width / 2, b.y + b.height / 2] }})(document.querySelector({json.dumps(selector)}))")
        await self.mouse("mousePressed", "mouseReleased", x=x, y=y)

    def of(self, method): return [e["params"] for e in self.events if e["method"] == method]

    def faults(self):
        "Requests for anything but the page and data, errors, and complaints of the console"
        asked = [p["request"]["url"] for p in self.of("Network.requestWillBeSent")]
        log = [p["entry"]["text"] for p in self.of("Log.entryAdded")]
        said = [str(p["args"])[:300] for p in self.of("Runtime.consoleAPICalled") if p["type"] in ("error", "warning", "assert")]
        return [u[:100] for u in asked if not u.startswith(("data:", "blob:")) and u != self.page] + log + said + [str(p) for p in self.of("Runtime.exceptionThrown")]


async def drive(path, steps, profile, width, height):
    from tornado.websocket import websocket_connect
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0", "--no-first-run",
               "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", f"--user-data-dir={profile}"]
    chromium = await asyncio.create_subprocess_exec(CHROMIUM, *options, "about:blank", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not (found := re.search(rb"listening on (ws://\S+)", await asyncio.wait_for(chromium.stderr.readline(), 60))): pass
        root = Browser(await websocket_connect(found[1].decode(), max_message_size=2**30))
        target = (await root.call("Target.createTarget", url="about:blank"))["targetId"]
        port = re.search(r":(\d+)/", found[1].decode())[1]
        browser = Browser(await websocket_connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_message_size=2**30), path.as_uri())
        for domain in ("Network", "Runtime", "Log", "Page"): await browser.call(f"{domain}.enable")
        await browser.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        await browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        await browser.call("Page.navigate", url=path.as_uri())
        return await steps(browser)
    finally:
        chromium.terminate()
        await chromium.wait()


def in_chromium(path, steps, profile, width=1280, height=900): return asyncio.run(drive(path, steps, profile, width, height))


DRAWN = "window.Bokeh && Bokeh.documents.length > 0 && document.querySelector('#embedding-legend button') !== null"
POINT = """(i => { document.getElementById('embedding-canvas').scrollIntoView({block: 'center'});
  const plot = Bokeh.documents[0].get_model_by_name('embedding'), view = Bokeh.index.find_one_by_id(plot.id);
  const d = plot.renderers[0].data_source.data, box = view.canvas_view.el.getBoundingClientRect(), f = view.frame;
  return [box.x + f.x_scale.compute(d.x[i]), box.y + f.y_scale.compute(d.y[i])]; })"""
TIP = """(() => { const find = root => [...root.querySelectorAll('*')].flatMap(e => [
    ...(e.matches('.bk-Tooltip') ? [e] : []), ...(e.shadowRoot ? find(e.shadowRoot) : [])]);
  const tip = find(document).find(e => e.getBoundingClientRect().width > 0); if (!tip) return null;
  const deep = e => [e, ...e.children, ...(e.shadowRoot ? e.shadowRoot.children : [])].flatMap((c, i) => i ? deep(c) : [c]);
  const all = deep(tip), img = all.filter(e => e.tagName == 'IMG'), box = tip.getBoundingClientRect();
  return {images: img.map(e => [e.naturalWidth, e.getAttribute('src').slice(0, 23)]), text: all.filter(e => e.tagName != 'STYLE').map(e => [...e.childNodes].filter(
    n => n.nodeType == 3).map(n => n.data).join('')).join(' ').replace(/\\s+/g, ' '), left: box.left, right: box.right}; })()"""


@pytest.fixture(scope="module")
def written(tmp_path_factory): return write_report(full(), tmp_path_factory.mktemp("report") / "Übersicht der Gruppen.html")


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_without_network(written, tmp_path, width):
    "It opens, asks for nothing, complains of nothing, is not wider than the screen, and shows the picture under the pointer"
    async def steps(b):
        await b.until(DRAWN)
        assert await b.js("document.documentElement.scrollWidth") <= width
        assert await b.js("[...document.images].every(i => i.complete && (i.naturalWidth > 0))")
        for i in (0, 1, 4, 7):
            x, y = await b.js(f"{POINT}({i})")
            await b.mouse("mouseMoved", x=x - 4, y=y - 4, button="none")
            await b.mouse("mouseMoved", x=x, y=y, button="none")
            tip = await b.until(TIP)
            assert tip["images"] == [[32, "data:image/jpeg;base64,"]] and tip["left"] >= 0 and tip["right"] <= width
            assert " ".join(HOSTILE[i].split()) in tip["text"] and f"subgroup {i % 3}" in tip["text"]
            await b.mouse("mouseMoved", x=5, y=5, button="none")
            await b.until(f"{TIP} === null")
        assert not b.faults() and "taken" not in (await b.js("document.title")).replace(HOSTILE[1], "")
    in_chromium(written, steps, tmp_path, width)


@needs_chromium
@pytest.mark.parametrize("fault", ["<img src='https://example.org/x.png' alt=''>", "<script>eval('1')</script>", "<script>nothing.at.all</script>",
                                   "<p onclick='1' style='background: url(https://example.org/x.png)'>x</p>"])
def test_the_test_in_the_browser_would_notice(tmp_path, fault):
    (tmp_path / "page.html").write_text(report_html(Content()).replace("</body>", fault + "</body>"), encoding="utf-8")
    async def steps(b):
        await b.until("document.readyState == 'complete'")
        await asyncio.sleep(.5)
        await b.js("1")
        return b.faults()
    assert in_chromium(tmp_path / "page.html", steps, tmp_path / "profile")


@needs_chromium
def test_subgroups_can_be_hidden_and_points_coloured_by_any_column(written, tmp_path):
    shown = "Bokeh.documents[0].get_model_by_name('embedding').renderers[0].view.filter.booleans"
    colours = "Bokeh.documents[0].get_model_by_name('embedding').renderers[0].data_source.data.colour"
    async def steps(b):
        await b.until(DRAWN)
        first = await b.js(colours)
        assert len(set(first)) == 3 and await b.js(f"{shown}.every(x => x)")
        await b.click("#embedding-legend button:nth-child(2)")
        assert await b.js(shown) == [i % 3 != 1 for i in range(20)]
        x, y = await b.js(f"{POINT}(1)")
        await b.mouse("mouseMoved", x=x, y=y, button="none")
        assert await b.js(f"new Promise(r => setTimeout(() => r({TIP}), 500))") is None      # what is hidden is not found
        await b.click("#embedding-legend button:nth-child(2)")
        assert await b.js(f"{shown}.every(x => x)")
        await b.js("(e => { e.value = 1; e.dispatchEvent(new Event('change')) })(document.getElementById('embedding-by'))")
        second = await b.js(colours)
        assert [c == second[0] for c in second] == [i % 2 == 0 for i in range(20)]
        assert await b.js("[...document.querySelectorAll('#embedding-legend bdi')].map(e => e.textContent)") == [HOSTILE[1][:40], "=1+1"]
        assert not b.faults()
    in_chromium(written, steps, tmp_path)


@needs_chromium
def test_a_selection_is_saved_as_a_table_in_which_nothing_is_a_formula(written, tmp_path):
    "Box around the lower left points; the blob that the button makes is read back"
    async def steps(b):
        await b.until(DRAWN)
        assert await b.js("document.getElementById('embedding-save').disabled")
        await b.js("""{const make = URL.createObjectURL; URL.createObjectURL = blob => { window.saved = blob; return make(blob); };
            HTMLAnchorElement.prototype.click = function() { window.name_ = this.download; };
            const plot = Bokeh.documents[0].get_model_by_name('embedding');
            plot.toolbar.tools.find(t => t.type == 'BoxSelectTool').active = true;}""")
        (x0, y0), (x1, y1) = await b.js(f"{POINT}(0)"), await b.js(f"{POINT}(7)")      # 0–2 and 5–7
        await b.mouse("mousePressed", x=x0 - 12, y=y0 + 12)
        for t in (.3, .6, 1): await b.mouse("mouseMoved", x=x0 - 12 + t * (x1 - x0 + 24), y=y0 + 12 + t * (y1 - y0 - 24))
        await b.mouse("mouseReleased", x=x1 + 12, y=y1 - 12)
        await b.until("document.querySelectorAll('#embedding-picked img').length == 6")
        assert await b.js("document.getElementById('embedding-count').textContent") == "6 chosen"
        await b.click("#embedding-save")
        text = await b.until("window.saved && saved.text()")
        assert await b.js("name_") == "selection.csv" and not b.faults()
        return text
    rows = list(csv.reader(io.StringIO(in_chromium(written, steps, tmp_path).removeprefix("\ufeff"))))
    assert rows[0][:4] == ["file", "subgroup", "probability", "label"]
    assert sorted(r[0].removeprefix("'") for r in rows[1:]) == sorted(HOSTILE[i] for i in (0, 1, 2, 5, 6, 7))
    for cell in itertools.chain(*rows): assert not re.match(r"\s*[=+\-@]", cell), cell
    assert {r[3] for r in rows[1:]} == {"'=1+1", HOSTILE[1][:40]}


@needs_chromium
def test_without_scripts_and_on_paper_the_map_stands_still(written, tmp_path):
    state = "[getComputedStyle(document.querySelector('.still')).display, getComputedStyle(document.querySelector('.live')).display]"
    async def steps(b):
        await b.until(DRAWN)
        screen = await b.js(state)
        await b.call("Emulation.setEmulatedMedia", media="print")
        paper = await b.js(state)
        await b.call("Emulation.setDeviceMetricsOverride", width=720, height=1000, deviceScaleFactor=1, mobile=False)
        return screen, paper, await b.js("document.documentElement.scrollWidth")
    screen, paper, width = in_chromium(written, steps, tmp_path)
    assert (screen, paper) == (["none", "block"], ["block", "none"]) and width <= 720
