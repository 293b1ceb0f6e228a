// A schema and a value go in; the first thing that is wrong with the value comes out, or nothing.
// Known are the keywords that the manifest's schema has; a schema puts the type before what it allows.

import { shown } from './errors.mjs';

const NOTES = new Set(['$schema', '$defs', 'title', 'description']);
const patterns = new Map();
const KINDS = {
  null: (value) => value === null,
  boolean: (value) => typeof value === 'boolean',
  string: (value) => typeof value === 'string',
  number: (value) => typeof value === 'number',
  integer: Number.isInteger,
  array: Array.isArray,
  object: (value) => typeof value === 'object' && value !== null && !Array.isArray(value),
};
const NAMES = {
  null: 'null',
  boolean: 'true or false',
  string: 'text',
  number: 'a number',
  integer: 'a whole number',
  array: 'a list',
  object: 'an object',
};

/** What is wrong with `value`, in one line that names the field; undefined where nothing is. */
export function problemOf(value, schema) {
  return check(value, schema, '', schema);
}

function check(value, rule, where, root) {
  for (const [keyword, required] of Object.entries(rule)) {
    if (NOTES.has(keyword)) continue;
    const problem = KEYWORDS[keyword](value, required, where, root, rule);
    if (problem) return problem;
  }
  return undefined;
}

const KEYWORDS = {
  $ref(value, reference, where, root) {
    return check(value, root.$defs[reference.replace('#/$defs/', '')], where, root);
  },
  anyOf(value, options, where, root) {
    const problems = options.map((option) => check(value, option, where, root));
    if (problems.includes(undefined)) return undefined;
    return problems.length === 2 ? problems[0] : mismatch(value, where, 'another kind of value');
  },
  enum(value, options, where) {
    if (options.includes(value)) return undefined;
    return mismatch(value, where, options.map((option) => JSON.stringify(option)).join(' or '));
  },
  type(value, kind, where) {
    return KINDS[kind](value) ? undefined : mismatch(value, where, NAMES[kind]);
  },
  properties(value, fields, where, root) {
    for (const [name, rule] of Object.entries(fields)) {
      const problem =
        Object.hasOwn(value, name) && check(value[name], rule, below(where, name), root);
      if (problem) return problem;
    }
    return undefined;
  },
  required(value, names, where) {
    const missing = names.find((name) => !Object.hasOwn(value, name));
    return missing && `${below(where, missing)} is missing`;
  },
  additionalProperties(value, rule, where, root, { properties = {} }) {
    for (const key of Object.keys(value)) {
      if (Object.hasOwn(properties, key)) continue;
      if (rule === false) {
        return `${below(where, shown(key).slice(1, -1))} is not a field of this format version`;
      }
      const problem = check(value[key], rule, `${where}[${shown(key)}]`, root);
      if (problem) return problem;
    }
    return undefined;
  },
  propertyNames(value, rule, where, root) {
    for (const key of Object.keys(value)) {
      const problem = check(key, rule, `${where}: the key ${shown(key)}`, root);
      if (problem) return problem;
    }
    return undefined;
  },
  items(value, rule, where, root) {
    for (const [index, item] of value.entries()) {
      const problem = check(item, rule, `${where}[${index}]`, root);
      if (problem) return problem;
    }
    return undefined;
  },
  minItems: (value, least, where) => atLeast(value.length, least, where, 'entries'),
  maxItems: (value, most, where) => atMost(value.length, most, where, 'entries'),
  minProperties: (value, least, where) =>
    atLeast(Object.keys(value).length, least, where, 'entries'),
  maxProperties: (value, most, where) => atMost(Object.keys(value).length, most, where, 'entries'),
  minLength: (value, least, where) => atLeast([...value].length, least, where, 'characters'),
  maxLength: (value, most, where) => atMost([...value].length, most, where, 'characters'),
  minimum: (value, least, where) =>
    value < least ? `${where} is ${value}; at least ${least} is required` : undefined,
  maximum: (value, most, where) =>
    value > most ? `${where} is ${value}; at most ${most} is allowed` : undefined,
  pattern(value, pattern, where) {
    if (!patterns.has(pattern)) patterns.set(pattern, new RegExp(pattern, 'u'));
    if (patterns.get(pattern).test(value)) return undefined;
    return `${where} is ${shown(value)}, whose form is not allowed there`;
  },
};

function atLeast(count, least, where, unit) {
  return count < least
    ? `${where} has ${count} ${unit}; at least ${least} are required`
    : undefined;
}

function atMost(count, most, where, unit) {
  return count > most ? `${where} has ${count} ${unit}; at most ${most} are allowed` : undefined;
}

function below(where, name) {
  return where ? `${where}.${name}` : name;
}

function mismatch(value, where, expected) {
  return `${where || 'the document'} is ${shown(value)}; ${expected} is required`;
}
