"""The service behind `clearstate serve`: files over HTTP and live streams over WebSockets.

    clients ──HTTP──── app.py ──── jobs.py ──── workers.py        one process per file in work, at low priority
       └────WebSocket── processes.py ── streams.py                 one process per core for live streams

Separate processes do the work, so that a long file or a damaged one cannot disturb a stream, and neither can disturb
the event loop of the service. `admission.py` refuses a stream that the machine cannot serve in time.
"""
