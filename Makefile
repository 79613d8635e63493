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

$(CACHE)/cloud-venv/.done: tests/cloud/requirements.txt
	python3 -m venv $(CACHE)/cloud-venv
	$(CACHE)/cloud-venv/bin/pip install --quiet -r $<
	touch $@

packages:
	tests/install_packages

test: packages $(VENV)/.done $(CACHE)/cloud-venv/.done $(TREE)  ## Set up everything and run all tests
	$(VENV)/bin/ruff check --quiet plugins tests/unit tests/integration
	cd $(TREE) && PYTHONPATH=$(CACHE)/collections $(VENV)/bin/python -m pytest --import-mode=importlib -p no:cacheprovider tests/unit tests/integration

cloud: packages $(CACHE)/cloud-venv/.done  ## Start a real Glance and Keystone on this machine, and say how to use them
	@$(CACHE)/cloud-venv/bin/python tests/cloud/embedded_cloud.py start

clean:  ## Remove what make has set up in this clone
	rm -rf $(CACHE)

.PHONY: help packages test cloud clean
