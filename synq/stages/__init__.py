"""The stages: read files, call one library function, write files. A module a stage."""
