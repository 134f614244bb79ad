"""Remove noise between a microphone and a loudspeaker or virtual cable; `clearstate live` is its command."""
