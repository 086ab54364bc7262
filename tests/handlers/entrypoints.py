"""Entrypoints of every form, good and bad; a test names the one it means."""

import asyncio
import functools


def sync(input_data):
    return input_data


async def coroutine(input_data):
    return input_data


def generator(input_data):
    yield input_data


async def async_generator(input_data):
    yield input_data


class CallableObject:
    def __call__(self, input_data):
        return input_data


class AsyncCallable:
    async def __call__(self, input_data):
        return input_data


class AsyncGeneratorCallable:
    async def __call__(self, input_data):
        yield input_data


class Agent:
    async def method(self, input_data):
        return input_data


def two(first, input_data):
    return [first, input_data]


async def async_two(first, input_data):
    return [first, input_data]


def quietly(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper


callable_object = CallableObject()
async_callable = AsyncCallable()
async_generator_callable = AsyncGeneratorCallable()
bound_method = Agent().method
partial = functools.partial(two, "first")
async_partial = functools.partial(functools.partial(async_two), "first")
built_in = repr
hidden_coroutine = quietly(coroutine)
hidden_generator = quietly(generator)
not_callable = {"handler": sync}


def no_argument():
    return None


def keyword_only(*, input_data):
    return input_data


def any_arguments(*args, **kwargs):
    return list(args)


def defaulted(input_data=None, other=1):
    return [input_data, other]


assert asyncio.iscoroutinefunction(coroutine)
