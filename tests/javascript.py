"""Runs the JavaScript of the laboratory: by node if it is installed, else by headless Chromium."""

import json
import shutil
import subprocess

from uturn.pages.laboratory import MODULES, script

NODE = shutil.which("node")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def evaluate(body, folder, **given):
    """What the body of a JavaScript function returns, with the modules of the laboratory and the
    `given` values in scope.

    Infinite numbers are returned as the strings "Infinity" and "-Infinity".
    """
    names = ", ".join(given)
    code = f"""{script(MODULES)}
const toText = (_, x) => x instanceof Object && ArrayBuffer.isView(x) ? Array.from(x) : Math.abs(x) === Infinity ? String(x) : x;
const answer = JSON.stringify((({{ {names} }}) => {{ {body} }})({json.dumps(given)}), toText);
"""
    if NODE:
        file = folder / "code.mjs"
        file.write_text(f"{code}console.log(answer);", encoding="utf-8")
        command = [NODE, str(file)]
    else:
        file = folder / "code.html"
        end = 'document.body.textContent = "answer: " + encodeURIComponent(answer) + " end";'
        file.write_text(
            f'<meta charset="utf-8"><body><script type="module">{code}{end}</script>',
            encoding="utf-8",
        )
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}/profile",
            "--dump-dom",
        ]
        command.append(file.as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    if NODE:
        return json.loads(done.stdout)
    from urllib.parse import unquote

    return json.loads(unquote(done.stdout.split("answer: ")[1].split(" end")[0]))
