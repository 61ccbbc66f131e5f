"""The commands of `po-distill`, a module per part of the road. Each imports its stage when it runs."""
