"""The app behind `clearstate app`: enhance, separate, extend and compare in a web page, built with Gradio.

    server.py ── page.py ── work.py ── tasks, metrics
                    │           └───── players.py, pictures.py
                    └────── catalogue.py

`page.py` lays out the page and connects its buttons. `work.py` does what a button asks for, and knows
nothing of the page.
"""
