"""What builds models from checkpoints: conversion, warm start, deployment."""
