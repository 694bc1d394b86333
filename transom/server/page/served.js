// The models that this server serves, as the page knows them: { id, name, task, chat, max_len, ... }.

import { get } from "./api.js";

let models = [];

let bases = [];

/** What can be asked: { id } of each knowledge base. */
export const knowledgeBases = () => bases;

export async function findModels() {
  const [{ data }, known] = await Promise.all([get("/v1/models"), get("/knowledge")]);
  bases = known.data;
  models = data.map((model) => ({ ...model, name: model.id.split("/").at(-1) }));
  return models;
}

/** A model by its id; null where it is not served now. */
export const served = (id) => models.find((model) => model.id === id) ?? null;
