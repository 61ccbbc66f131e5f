"""What the tests of installs share: a student that answers as the role wants, an older one, and a plain client."""

from __future__ import annotations

import ollama

from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.packager import Packager

ROLE = ProductOwnerRole()
CONCEPT = ROLE.generate_concepts(1, seed=3)[0]
ANSWER = ROLE.answer_by_rules(CONCEPT)
PROMPT = [{"role": message.speaker, "content": message.content} for message in ROLE.render(CONCEPT)]
NAME, ALIAS = "po-student-v1", "po-student-v1:latest"
CHATML = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def plant_old(fake, gguf, name=ALIAS):
    """Let a name stand for an older model; its manifest's digest."""
    return fake.plant(name, gguf, template=CHATML, parameters={"num_ctx": 8192, "stop": ["<|im_end|>"]})


def answer(fake, name=NAME):
    """What a plain client is answered, as production calls it."""
    return ollama.Client(fake.base_url).chat(name, PROMPT, options={"temperature": 0}).message.content


def whole_name(package):
    return f"{package.name}:{package.tag}"


def install(fake, package):
    return Packager().install(package, fake.base_url)


def finished(fake, package, former):
    """The next run finishes: the alias is the package's, what it stood for is kept, and nothing else is there."""
    install(fake, package)
    assert fake.names() == sorted([whole_name(package), ALIAS, f"{NAME}:kept-{former[:12]}"])
    assert fake.model_digest(ALIAS) == fake.model_digest(whole_name(package))
    assert answer(fake) == ANSWER
