#include <map>
#include <typeindex>

#include <fabric/base/nearest_name.h>
#include <fabric/config.h>

#include "fabric/config/resolver_internal.h"

namespace fabric::detail {
namespace {

struct Recipe {
  RecipeText text;
  std::function<Tree()> make;
};

std::vector<Recipe>& recipes_of(const std::type_info& type) {
  static std::map<std::type_index, std::vector<Recipe>> all;
  return all[type];
}

}  // namespace

void add_recipe(const std::type_info& type, const std::string& name, const std::string& description,
                std::function<Tree()> make) {
  if (name.empty()) throw ConfigError("a recipe needs a name");
  auto& recipes = recipes_of(type);
  for (const Recipe& recipe : recipes)
    if (recipe.text.name == name) throw ConfigError("a recipe named '" + name + "' exists already");
  recipes.push_back({{name, description}, std::move(make)});
}

std::vector<RecipeText> recipe_texts(const std::type_info& type) {
  std::vector<RecipeText> out;
  for (const Recipe& recipe : recipes_of(type)) out.push_back(recipe.text);
  return out;
}

std::vector<std::string> recipe_names(const std::type_info& type) {
  std::vector<std::string> out;
  for (const Recipe& recipe : recipes_of(type)) out.push_back(recipe.text.name);
  return out;
}

Tree make_recipe(const std::type_info& type, const std::string& name) {
  for (const Recipe& recipe : recipes_of(type))
    if (recipe.text.name == name) return recipe.make();
  throw ConfigError("unknown recipe '" + name + "'" + did_you_mean(name, recipe_names(type)));
}

}  // namespace fabric::detail
