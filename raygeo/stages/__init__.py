"""The stages of a study, one file each: what a stage takes from the store and what it puts there."""
