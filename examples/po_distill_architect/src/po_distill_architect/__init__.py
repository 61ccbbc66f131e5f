"""The role `architect` for po_distill: requirements and a product vision in, stories and an architecture out."""
