"""From pictures to spikes, and from spikes to answers and losses."""
