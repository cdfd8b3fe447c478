"""What a study will take, stage by stage, before it is begun: memory, disk, hours, and what will not fit."""
