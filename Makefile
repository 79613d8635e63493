.DEFAULT_GOAL := help
CACHE := $(CURDIR)/.cache
TREE := $(CACHE)/collections/ansible_collections/imageferry/glance
VENV := $(CACHE)/venv
export ANSIBLE_COLLECTIONS_PATH := $(CACHE)/collections

help:  ## Show what each target does
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.done: tests/requirements.txt requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.txt -r tests/requirements.txt
	touch $@

$(TREE):
	mkdir -p $(dir $@)
	ln -sfn $(CURDIR) $@

packages:
	tests/install_packages

test: packages $(VENV)/.done $(TREE)  ## Set up everything and run all tests
	cd $(TREE) && PYTHONPATH=$(CACHE)/collections $(VENV)/bin/python -m pytest --import-mode=importlib -p no:cacheprovider tests/unit tests/integration

clean:  ## Remove what make has set up in this clone
	rm -rf $(CACHE)

.PHONY: help packages test clean
