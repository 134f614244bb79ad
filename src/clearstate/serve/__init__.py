"""The service behind `clearstate serve`: files over HTTP and live streams over WebSockets, from one process.

    clients ──HTTP──── app.py ──── jobs.py ──── workers.py     one process per file in work, at low priority
       └────WebSocket── streams.py ── hops.py                  one pool of threads for the hops of all streams

The event loop only moves bytes. Threads process live streams, and separate processes process files, so that a long file
or a damaged one cannot disturb a stream. `admission.py` refuses a stream that the machine cannot serve in time.
"""
